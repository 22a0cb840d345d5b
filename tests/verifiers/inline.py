"""docs/verifier.html is one file, and its verifier is that of the pages: this puts app/pages/static/verifier.js into it.

make verifier
"""

import base64
import hashlib
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "verifier.html"
SOURCE = ROOT / "app" / "pages" / "static" / "verifier.js"
_SCRIPT = re.compile(r"(?<=<script>\n).*?(?=</script>)", re.DOTALL)
_HASHES = re.compile(r"(?<=script-src )('sha256-[^;]*)(?=;)")


def inlined(page: str, source: str) -> str:
    """The page with `source` as its first script, and a policy that names the scripts that it has then."""
    page = _SCRIPT.sub(lambda _: source, page, count=1)
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    return _HASHES.sub(" ".join(f"'sha256-{digest}'" for digest in digests), page, count=1)


if __name__ == "__main__":
    PAGE.write_text(inlined(PAGE.read_text("utf-8"), SOURCE.read_text("utf-8")), "utf-8")
