"""The checksum of a manifest's content, which the manifest itself holds."""

import hashlib
import json
from typing import Any

CHECKSUM = "checksum"
"""The key of the checksum in a manifest."""


def checksum_of_content(manifest: dict[str, Any]) -> str:
    """Return the SHA-256 of a manifest's content, without its own checksum.

    Whitespace and the order of keys do not change the result.
    """
    content = {k: v for k, v in manifest.items() if k != CHECKSUM}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
