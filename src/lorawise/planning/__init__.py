"""The room of planning: which numbers, why, what memory, how long, and whether it fits.

Facts of the model, of the data and of the device go in; decisions with reasons come out, and a run file ready to train.
Nothing here loads torch or transformers. (The room is called `planning` so that `lorawise.plan` stays a function.)
"""
