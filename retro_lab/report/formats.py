"""Number formats for people, the same in every table, figure and page."""

NO_VALUE = "\N{EN DASH}"


def count(value: float) -> str:
    """Shorten a count to three digits and a suffix: 172000000 becomes `172M`."""
    rounded = float(f"{value:.3g}")
    for scale, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(rounded) >= scale:
            return f"{rounded / scale:.3g}{suffix}"
    return f"{rounded:g}"


def score(value: float) -> str:
    """Show bits per byte with the three decimals of the paper's tables."""
    return f"{value:.3f}"


def with_range(value: float, low: float | None, high: float | None) -> str:
    """Show bits per byte, and the lowest and highest of several if it is their mean."""
    spread = "" if low is None or high is None else f" ({score(low)} to {score(high)})"
    return score(value) + spread


def perplexity(value: float) -> str:
    """Show a perplexity with the two decimals of the paper's tables."""
    return f"{value:.2f}"


def signed_score(value: float) -> str:
    """Show a difference in bits per byte, always with its sign."""
    return f"{value:+.3f}"


def with_interval(value: float, low: float | None, high: float | None) -> str:
    """Show a difference in bits per byte, and its interval if it has one."""
    interval = "" if low is None or high is None else f" [{signed_score(low)}, {signed_score(high)}]"
    return signed_score(value) + interval


def flops(value: float) -> str:
    """Show a number of floating-point operations with three digits and a prefix: `3.36T`, up to `Z` for 1e21."""
    rounded = float(f"{value:.3g}")
    for power, prefix in enumerate("ZEPTGM"):
        scale = 10.0 ** (21 - 3 * power)
        if rounded >= scale:
            return f"{rounded / scale:.3g}{prefix}"
    return count(value)


def ratio(value: float) -> str:
    """Show how many times something else a number is."""
    return f"{value:.2f}"


def signed_percent(value: float) -> str:
    """Show a difference in percent, always with its sign."""
    return f"{value:+.1f}%"


def share(value: float) -> str:
    """Show a share of one in percent; a share below one never rounds up to 100%."""
    return f"{value:.0%}" if value in (0, 1) else f"{min(value, 0.999):.1%}"


def share_with_interval(value: float, low: float | None, high: float | None) -> str:
    """Show a share of one in percent, and its interval if it has one."""
    return share(value) + ("" if low is None or high is None else f" [{share(low)}, {share(high)}]")


def duration(seconds: float) -> str:
    """Show a time in its two largest units."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"
