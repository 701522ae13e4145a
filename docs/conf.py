"""The documentation: python -m sphinx -W -n docs build/docs, after pip install '.[docs]'."""

import fastadam

project = "fastadam"
author = "the fastadam developers"
copyright = "the fastadam developers, MIT licence"
version = release = fastadam.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.mathjax", "numpydoc", "myst_parser"]
extensions += ["sphinx-mathjax-offline"]  # formulas show without a network
default_role = "autolink"  # `name` in docstrings: a link if there is such a name, else emphasis
nitpick_ignore = [  # arguments and attributes: they are in the lists of their own page
    ("py:obj", name)
    for name in (
        *("accumulate", "ema_decay", "last_values", "max_norm", "nonfinite", "skipped_steps", "steps", "threads_used"),
        *("nbytes", "end", "copy.deepcopy", "rows"),
    )
]
autodoc_mock_imports = ["mpi4py"]  # only fastadam.mpi needs it
autodoc_typehints = "none"  # the numpydoc sections have the types
autodoc_member_order = "bysource"
autosummary_generate = False
numpydoc_show_class_members = False
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"fastadam {version}"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_copy_source = False
