"""Many settings to many picture files: order, claims, batches, files, failures. Tells events, prints nothing.

`run` is the way through: checks → what is there already → groups → draw → finish.
"""
