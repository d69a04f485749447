"""From notebooks to the site: papermill executes, jupyter-book renders, one cache between them."""
