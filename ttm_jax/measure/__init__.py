"""The measurements that `python -m ttm_jax.benchmark` runs, and the pages that are written from results.

Each of the benchmark's modules measures one thing: `measure(device, progress, **options)` gives plain values for a
section of the device's result file, QUICK are the options of a quick run, and `tables(section)` shows the section.
"""
