"""`python -m lorawise`: the command line of this interpreter's lorawise."""

from lorawise.cli import main

if __name__ == "__main__":
    main()
