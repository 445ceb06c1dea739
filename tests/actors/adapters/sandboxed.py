"""Adapters through real child processes."""


def write(path, files):
    path.mkdir()
    for name, content in files.items():
        (path / name).write_bytes(content)
    return str(path)


def pids_of(loader):
    return [child._process.pid for child in loader._children]


def outcomes(loader, tickets):
    """What becomes of tickets."""
    found = {}
    while len(found) < len(tickets):
        loader.wait()
        found |= dict(loader.finished())
        loader.check()
    return [found[ticket] for ticket in tickets]
