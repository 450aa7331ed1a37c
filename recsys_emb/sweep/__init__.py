"""Every method at several memory budgets, over seeds: the figures, tables, a plot and a page of them."""
