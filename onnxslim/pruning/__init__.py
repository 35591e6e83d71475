"""New sparsity after training: which weights go, what repairs the rest, and what it costs."""
