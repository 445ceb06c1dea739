"""A sweep as pictures."""

import matplotlib
from matplotlib import pyplot

matplotlib.use("Agg")


def save(name, results, folder):
    """Write a shape's pictures into a folder, and return their files."""
    folder.mkdir(parents=True, exist_ok=True)
    return [_times(name, results, folder), _rates(name, results, folder)]


def _times(name, results, folder):
    """A layer's time by tokens, one panel for each distribution; the limit is dashed."""
    distributions = list(dict.fromkeys(case.distribution for case in results.costs))
    figure, panels = pyplot.subplots(
        1, len(distributions), figsize=(5 * len(distributions), 4), sharey=True, squeeze=False
    )
    for panel, distribution in zip(panels[0], distributions, strict=True):
        mine = [case for case in results.costs if case.distribution == distribution]
        most = max(case.adapters for case in mine)
        shown = [case for case in mine if case.adapters == most]
        for engine, seconds in results.seconds.items():
            found = [case for case in shown if case in seconds]
            panel.plot(
                [case.tokens for case in found],
                [seconds[case] * 1e6 for case in found],
                marker="o",
                label=engine,
            )
        limits = [_limit(results, case) * 1e6 for case in shown]
        panel.plot([case.tokens for case in shown], limits, "k--", label="limit")
        panel.set_xscale("log", base=2)
        panel.set(yscale="log", xlabel="tokens", title=f"{distribution}, {most} adapters")
    panels[0][0].set_ylabel("us a layer")
    panels[0][0].legend()
    return _write(figure, folder / f"{name}-times.png", f"{name}: LoRA of a layer")


def _rates(name, results, folder):
    """The share of copying's rate at which weft reads adapters, by distinct adapters."""
    figure, panel = pyplot.subplots(figsize=(6, 4))
    counts = sorted({case.adapters for case in results.costs})
    for tokens in sorted({case.tokens for case in results.costs}):
        cases = [
            case
            for case in results.costs
            if case.tokens == tokens and case.distribution in ("distinct", "identical")
        ]
        shares = [
            results.costs[case].adapter_bytes / results.seconds["weft"][case] / results.copy_rate
            for case in cases
        ]
        panel.plot([case.adapters for case in cases], shares, marker="o", label=f"{tokens} tokens")
    panel.set_xscale("log", base=2)
    panel.set(xlabel="distinct adapters", ylabel="of copying", xticks=counts)
    panel.legend(fontsize="small")
    return _write(figure, folder / f"{name}-rates.png", f"{name}: adapters read by weft")


def _limit(results, case):
    """Return the seconds that memory or multiplication needs at least."""
    cost = results.costs[case]
    return max(cost.bytes / results.copy_rate, cost.operations / results.matrix_rate)


def _write(figure, path, title):
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path
