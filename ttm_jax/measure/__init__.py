"""The measurements that `python -m ttm_jax.benchmark` runs.

Each module measures one thing: `measure(device, quick, progress)` gives plain values for a section of the device's
result file; `tables(section)` and `notes(section)` show them, on the terminal as on the page.
"""
