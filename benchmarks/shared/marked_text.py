"""Replace a table between two markers in a Markdown file."""

import re


def replace(path, name, text):
    """Replace the text between `<!-- NAME -->` and `<!-- /NAME -->`.

    Raises:
        SystemExit: If the file has no such markers.
    """
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    whole = path.read_text()
    marked = re.compile(f"{start}.*?{end}", re.DOTALL)
    if not marked.search(whole):
        raise SystemExit(f"error: {path} has no {start} ... {end}. Add them.")
    path.write_text(marked.sub(lambda _: f"{start}\n{text}\n{end}", whole))
