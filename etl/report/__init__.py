"""Everything that is read for people, files and machines: each question is answered in one place."""
