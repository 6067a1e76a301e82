"""Where workloads come from: published traces, published statistics, recordings of a server."""
