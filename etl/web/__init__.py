"""The page, and the server for page, health and metrics.

The server is part of the core. The pages and the report need the extra ``flowtrail[web]``: where it is missing, to
import ``etl.web.app`` or ``etl.web.overview`` raises a UsageError that says so.
"""
