"""The scores inside other pruning tools, one file per tool; each needs its tool and nothing else imports it."""
