// The look of every interactive figure, light and dark. Python reads the same object (figures.py),
// so what follows the equals sign is plain JSON.
globalThis.explorableTheme = {
  "light": {
    "ink": "#1F2933", "muted": "#5B6770", "grid": "#E3E7EB", "hover": "#FFFFFF",
    "colours": ["#0072B2", "#D55E00", "#008F68", "#B8578F", "#A87300", "#2E8BC0", "#6B4FA0"]
  },
  "dark": {
    "ink": "#E6EAEE", "muted": "#A9B4BD", "grid": "#343C44", "hover": "#20262C",
    "colours": ["#4FA8E0", "#F58B4C", "#35C79B", "#E392C3", "#EBB54A", "#93CDF0", "#B79CEB"]
  },
  "layout": {
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif", "size": 13},
    "title": {"font": {"size": 15}, "x": 0, "xref": "paper", "xanchor": "left", "yref": "container", "yanchor": "top", "y": 1, "pad": {"t": 8}},
    "margin": {"l": 56, "r": 16, "t": 24, "b": 48},
    "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.01, "yanchor": "bottom", "font": {"size": 12}},
    "hoverlabel": {"font": {"size": 12}},
    "dragmode": "zoom",
    "hovermode": "closest"
  },
  "axis": {
    "automargin": true, "zeroline": false, "showline": true, "linewidth": 1,
    "ticks": "outside", "ticklen": 4, "title": {"standoff": 8}
  },
  "colorbar": {"outlinewidth": 0, "thickness": 14, "ticks": "outside", "ticklen": 4},
  "maps": ["heatmap", "contour", "histogram2d", "surface"],
  "colorscale": {
    "sequential": [[0, "#00224E"], [0.25, "#414D6B"], [0.5, "#7C7B78"], [0.75, "#BCAF6F"], [1, "#FEE838"]],
    "diverging": [[0, "#0072B2"], [0.25, "#7DB4D8"], [0.5, "#F2F2F2"], [0.75, "#ECA673"], [1, "#D55E00"]]
  }
};
