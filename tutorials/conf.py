"""How Sphinx makes the book: chapters as they were run, formulas as MathML, nothing fetched from elsewhere."""

import latex2mathml.converter

project = "minilora: LoRA from scratch"
author = "the minilora developers"
extensions = ["myst_nb"]
exclude_patterns = ["_build"]
nb_execution_mode = "off"  # they were run already
nb_merge_streams = True
nb_code_prompt_show = "Show the code"  # of figures and of solutions
nb_code_prompt_hide = "Hide the code"
nb_ipywidgets_js = {}  # no chapter shows a widget, and scripts would come from the network
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = project
html_static_path = ["book.css"]
html_css_files = ["book.css"]
html_copy_source = False
html_show_copyright = False
html_math_renderer = "mathml"
nb_number_source_lines = False


def _inline(self, node):
    self.body.append(latex2mathml.converter.convert(node.astext()))
    raise _skip()


def _block(self, node):
    formula = latex2mathml.converter.convert(node.astext(), display="block")
    self.body.append(f'<div class="formula" style="overflow-x: auto">{formula}</div>')
    raise _skip()


def _skip():
    from docutils.nodes import SkipNode

    return SkipNode()


def setup(app):
    """Browsers show MathML by themselves, so that formulas need no script and no network."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
