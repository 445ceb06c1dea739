"""Tables in Markdown."""


def markdown(header, rows):
    """Return a table; numbers are aligned to the right."""
    lines = [f"| {' | '.join(header)} |", f"|{'|'.join(['---', *['---:'] * (len(header) - 1)])}|"]
    lines += [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join(lines)
