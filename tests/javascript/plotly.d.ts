/** What report.js calls of plotly.js, which travels in every report. */
declare const Plotly: {
  newPlot(chart: HTMLElement, data: object[], layout: object, config: object): Promise<unknown>;
  relayout(chart: HTMLElement, change: object): Promise<unknown>;
};
