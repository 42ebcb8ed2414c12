"""Why a row cannot be used: one name a cause, with the cure that is the same for every row of that cause."""

CURES = {
    "not-utf8": "save the file as UTF-8, e.g. `iconv -f WINDOWS-1252 -t UTF-8 old > new`",
    "not-json": "write one JSON object a line; json.dumps makes the escapes right",
    "not-csv": "quote fields that hold commas, quotes or line breaks; double the quotes inside",
    "not-object": 'a row is an object with named fields, e.g. {"text": "..."}',
    "too-long": "no example is that long: is a line break missing between rows?",
    "too-deep": "a row nests a few levels at most: is this the data you meant?",
    "unreadable": "make the file again, or download it once more",
    "unknown-format": "rename the fields, or name the format with data.format",
    "ambiguous-format": "name the one you mean with data.format",
    "missing-field": "fill the field in, or leave the row out",
    "wrong-type": "write the field as the format asks",
    "empty-content": "fill the text in, or leave the row out",
    "wrong-role": "roles are system, developer, user, assistant and tool",
    "no-assistant": "give the row an assistant turn: its tokens are what is trained",
    "bad-tool-call": 'a tool call is {"type": "function", "function": {"name": "...", "arguments": {...}}}',
    "not-text": "only text can be trained here: leave images, audio and files out",
}


class BadRow(ValueError):  # noqa: N818 - a verdict on a row that the reader collects, not an error a caller sees
    """One row cannot be used. `cause` is a key of `CURES`; `args[0]` says what was found."""

    def __init__(self, cause: str, found: str) -> None:
        super().__init__(found)
        self.cause = cause
        self.found = found
