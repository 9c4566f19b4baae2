"""Crash tests: the real program is killed, or gets an error, at every point; an independent checker judges the result.

    make crash N=1000 SEED=1        # everything, exhaustively, with N random kills
    python -m tests.crash --bugs    # every seeded bug is caught by at least one test

``etl/`` has no code for this: ``points.py`` installs hooks in the libraries below the program.
"""
