"""Plans, credits and invoices.

Pure, but for `plans`, `invoice_log` and `progress`, which are about the log, `billing`, which brings it all together,
and `api`, which is HTTP.
"""
