"""Random adapters of a shape, the same for every engine under measurement."""

import torch


def matrices(shape, adapter, rank, device, dtype):
    """Return of each site of a layer its modules' (A [rank, in], B [out, rank])."""
    generator = torch.Generator(device).manual_seed(adapter)

    def random(rows, columns):
        values = torch.randn(rows, columns, generator=generator, device=device)
        return (values / columns**0.5).to(dtype)

    return [
        [(random(rank, site.features), random(width, rank)) for width in site.widths]
        for site in shape.sites
    ]


def expected(shape, site_index, x, rows, ranks):
    """Return what the adapters of ``rows`` add at a site: float32 [T, out of the site]."""
    site = shape.sites[site_index]
    y = torch.zeros(len(x), site.out, device=x.device)
    for adapter in set(rows.tolist()):
        mine = torch.from_numpy(rows == adapter).to(x.device)
        rank = int(ranks[adapter])
        modules = matrices(shape, adapter, rank, x.device, x.dtype)[site_index]
        parts = [x[mine].float() @ a.float().T @ b.float().T for a, b in modules]
        y[mine] = torch.cat(parts, dim=1)
    return y
