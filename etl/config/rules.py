"""Rules that span several settings, or what they name: addresses, files, secrets, permissions."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from etl.config import addresses, receivers
from etl.config.secret import openness, read_secret_file
from etl.config.units import holds_password
from etl.config.values import Values, variable
from etl.system.disk import MIB, open_regular

_PATHS: Final = (
    "gateway.ca_bundle",
    "gateway.secret_key_file",
    "database.url_file",
    "retention.heads_file",
    "seal.key_file",
    "schedules_dir",
)


_LARGEST_BUNDLE: Final = 64 * MIB


def apply_rules(values: Values, *, asks_gateway: bool = True) -> tuple[str, ...]:
    """Add problems to ``values.problems``, make paths absolute, and return the warnings.

    A command that only reads the database (``asks_gateway`` False) may lack the gateway's address, key and files.
    """
    for name in _PATHS:
        if values[name]:
            values[name] = str(values.folder / values[name])
    values["verify.public_keys"] = tuple(str(values.folder / name) for name in values["verify.public_keys"])
    _address(values)
    if asks_gateway:
        _gateway(values)
    files = _database(values)
    files += [file for section in values.receivers for file in _receivers(values, section)]
    if values["scale.dask"] and str(values["database.url"]).startswith("sqlite"):
        values.fault("scale.dask", "needs PostgreSQL: workers on other machines cannot share a SQLite file")
    files += [Path(path)] if (path := values["gateway.secret_key_file"]) else []
    return tuple(warning for file in files if (warning := openness(file)))


def _address(values: Values) -> None:
    url, name = values["gateway.url"], "gateway.url"
    if url.lower().startswith("http:") and not values["gateway.allow_http"] and not addresses.is_loopback(url):
        values.fault(name, "must start with https:// (http only to this machine, or with allow_http = true)")


def _gateway(values: Values) -> None:
    """Require everything that is needed to ask the gateway."""
    name = "gateway.url"
    if not values[name] and not values.is_faulty(name):
        values.fault(name, 'is missing: the address of the EnOS API gateway, such as "https://apim.example.com"')
    bundle = values["gateway.ca_bundle"]
    if bundle and not Path(bundle).is_dir():
        values.attempt("gateway.ca_bundle", lambda: _readable(Path(bundle)))
    if values["gateway.auth"] == "token" and not values.is_faulty("gateway.auth"):
        _access(values)


def _readable(file: Path) -> None:
    """Raise ValueError if a file of certificates cannot be read."""
    try:
        open_regular(file, _LARGEST_BUNDLE).close()
    except FileNotFoundError:
        raise ValueError(f"there is no file {file}") from None
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from None


def _access(values: Values) -> None:
    """Require the key and the secret for auth = "token"; the secret file is read to check that it can be."""
    key, secret, file = "gateway.access_key", "gateway.secret_key", "gateway.secret_key_file"
    if not values[key] and not values.is_faulty(key):
        values.fault(key, 'is missing: the access key of the EnOS application (or set auth = "none")')
    if values[secret] or values.is_faulty(secret) or values.is_faulty(file):
        return
    if values[file]:
        values.attempt(file, lambda: read_secret_file(Path(values[file])))
    else:
        values.fault(secret, f"is missing: set {variable(secret)} in the environment, or secret_key_file to a file")


def _database(values: Values) -> list[Path]:
    """Decide between url and url_file, and read it; return the files that contain its password."""
    url, file = "database.url", "database.url_file"
    if not _is_one_given(values, url, file):
        return []
    if values[file]:
        text = values.attempt(file, lambda: read_secret_file(Path(values[file])).reveal())
        values[url] = text and values.attempt(file, lambda: addresses.database_url(text, values.folder))
        return [Path(values[file])]
    values[url] = values.attempt(url, lambda: addresses.database_url(values[url], values.folder))
    in_file = values.is_given(url) and not values.is_from_environment(url)
    return [values.path] if in_file and values[url] and holds_password(values[url]) else []


def _is_one_given(values: Values, plain: str, file: str) -> bool:
    """Whether at most one of two settings remains: the one from the environment, if the other is from the file."""
    if values.is_faulty(plain) or values.is_faulty(file):
        return False
    if values[file] and values.is_given(plain):
        if values.is_from_environment(plain) == values.is_from_environment(file):
            values.fault(file, f"cannot be combined with {plain.rpartition('.')[2]}: keep one of the two")
            return False
        if values.is_from_environment(plain):
            values[file] = ""
    return True


def _receivers(values: Values, section: str) -> list[Path]:
    """Decide between urls and urls_file, and read it; return the files that contain addresses."""
    urls, file = f"{section}.urls", f"{section}.urls_file"
    if not _is_one_given(values, urls, file):
        return []
    if values[file]:
        values[file] = str(values.folder / values[file])
        values[urls] = values.attempt(file, lambda: receivers.receiver_urls_file(Path(values[file])))
        return [Path(values[file])]
    if not values[urls]:
        values.fault(urls, 'is missing: the addresses to write to, such as ["mailto://..."], or urls_file with them')
    return [values.path] if values.is_given(urls) and not values.is_from_environment(urls) else []
