"""What an auditor is given: ``check.py`` checks a bundle alone, without the package around it."""
