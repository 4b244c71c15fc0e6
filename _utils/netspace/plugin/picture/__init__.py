"""Picture of who may reach whom, as one page of HTML: its layout, palette, template and script."""
