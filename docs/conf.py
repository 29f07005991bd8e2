"""Sphinx configuration: Markdown by MyST, docstrings by autodoc, furo as the theme."""

# The extension first: autodoc would hide why an import failed.
import monolith_kv

project = "monolith_kv"
copyright = "the monolith_kv authors"
version = release = monolith_kv.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"monolith_kv {release}"
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nitpicky = False

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # Docstrings say dtype and shape; an ArrayLike spelt out says nothing.
autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
