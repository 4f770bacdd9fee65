"""Names of the router's metrics."""

from kairos.router.observe.metrics import RouterMetrics

SUFFIXES = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
    "info": ("_info",),
}


def sample_names() -> set[str]:
    """Names of all samples, as a query may use them."""
    return {
        family.name + suffix
        for family in RouterMetrics().registry.collect()
        for suffix in SUFFIXES[family.type]
    }
