"""``python -m etl`` is ``flowtrail``."""

from etl.cli import main

if __name__ == "__main__":
    main()
