"""What the blog tells about itself: access log, gin's debug lines, the file log.

Whatever came with a request goes through `safe` before it is logged.
"""

from pkg.logging.access import AccessLog
from pkg.logging.debug import redirecting, registered, warn_debug_mode
from pkg.logging.file import open_file_log
from pkg.logging.safe import mask, mask_query, printable

__all__ = [
    "AccessLog",
    "mask",
    "mask_query",
    "open_file_log",
    "printable",
    "redirecting",
    "registered",
    "warn_debug_mode",
]
