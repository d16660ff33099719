"""What the URLs of logs and stores have in common: secrets, which nothing that we print may show."""

import re
from urllib.parse import SplitResult

_SECRET = re.compile(r"([?&;][^=&;\s]*(?:password|secret|token)[^=&;\s]*=)[^&;\s'\"]*", re.IGNORECASE)
# Up to the last @ before the first parameter: / # ? and blanks should be written as %.. in a password, but may not be.
_USER = re.compile(r"(\b[a-z][a-z0-9+.-]*://)(?:(?!://|\?[^@\s]*=)[^\n])*@", re.IGNORECASE)


def mask(text: str) -> str:
    """`text` with what is secret in the URLs that it holds replaced by `***`.

    >>> mask("cannot open redis://u:p@h:1/x?ssl_password=q&db=2")
    'cannot open redis://***@h:1/x?ssl_password=***&db=2'
    >>> mask("redis://u:p/a ?#s@h:1/x and kafka://h/x?sasl_plain_username=me@home")
    'redis://***@h:1/x and kafka://h/x?sasl_plain_username=me@home'
    """
    return _SECRET.sub(r"\1***", _USER.sub(r"\1***@", text))


def holds_stray_user(url: SplitResult) -> bool:
    """Whether a user and password hold a / ? or #, so that a part of them is taken for the hosts.

    >>> from urllib.parse import urlsplit
    >>> holds_stray_user(urlsplit("redis://u:p/a@h:1/x")), holds_stray_user(urlsplit("redis://u:p%2Fa@h:1/x?a=b@c"))
    (True, False)
    """
    return "@" in url.path + url.fragment + url.query.partition("=")[0]
