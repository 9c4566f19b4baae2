"""The crash proof: the real program dies, or is refused something, wherever it can; an independent checker judges.

    make crash N=1000 SEED=1        # everything, exhaustively, with N random kills
    python -m tests.crash --bugs    # every seeded bug is caught by something

``etl/`` knows nothing of this: a launcher (``launcher.py``) installs its hooks in the libraries below the program.
"""
