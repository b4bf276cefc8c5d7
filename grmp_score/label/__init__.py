"""Rating photos in the browser: a page served from this machine alone, and a CSV that grows click by click."""
