"""Report -> text and HTML. Both lower the same `view.ReportView`; neither needs torch or IPython."""
