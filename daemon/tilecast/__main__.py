"""`python -m tilecast`: the command line, where the script `tilecast` is not on the path."""

from tilecast.cli import main

if __name__ == "__main__":
    main()
