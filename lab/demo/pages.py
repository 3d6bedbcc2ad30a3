"""Pages of the standard library's documentation that take the server a few milliseconds to write.

Every name is in CPython 3.11 and later on every system that runs the demo. Large ones (``ctypes``
takes a second, ``ast`` has 400 KB) are left to the deep searches, which meet them on their way.
"""

from __future__ import annotations

from typing import Final

LIGHT_PAGES: Final = (
    "abc", "atexit", "base64", "bdb", "binascii", "bisect", "bz2", "cmath", "cmd", "code",
    "codeop", "colorsys", "compileall", "concurrent", "contextvars", "copy", "copyreg", "dbm",
    "dis", "email", "encodings", "ensurepip", "errno", "faulthandler", "fcntl", "filecmp",
    "fileinput", "fnmatch", "fractions", "functools", "gc", "genericpath", "getopt", "getpass",
    "gettext", "glob", "graphlib", "grp", "gzip", "hashlib", "heapq", "hmac", "html", "importlib",
    "keyword", "linecache", "marshal", "math", "mimetypes", "mmap", "modulefinder", "netrc",
    "ntpath", "opcode", "pickletools", "pkgutil", "platform", "plistlib", "posixpath", "pprint",
    "profile", "pty", "pwd", "py_compile", "pyclbr", "pydoc", "pyexpat", "quopri", "random",
    "reprlib", "resource", "rlcompleter", "runpy", "sched", "secrets", "select", "shelve", "shlex",
    "shutil", "site", "stat", "string", "stringprep", "struct", "sys", "sysconfig", "syslog",
    "tabnanny", "tempfile", "termios", "textwrap", "time", "timeit", "token", "tokenize",
    "tomllib", "tty", "unicodedata", "urllib", "uuid", "venv", "warnings", "wsgiref", "xml",
    "xmlrpc", "zipapp", "zipimport", "zlib", "zoneinfo",
)  # fmt: skip

SEARCH_SEEDS: Final = (
    "email", "json", "xml", "logging", "http", "urllib", "concurrent", "sqlite3",
)  # fmt: skip
"""Where deep searches begin; each links to its own modules and to the index of everything."""
