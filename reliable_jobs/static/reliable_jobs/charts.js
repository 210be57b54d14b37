'use strict';
// Draws the charts from the table beside them, which screen readers and print have as it is.
(function() {
    const COLOURS = {ended: ['#44b78b', '#ba2121'], run: ['#447e9b', '#b58900'], wait: ['#447e9b', '#b58900'],
        failures: ['#ba2121', '#b58900', '#8e44ad'], depth: ['#447e9b', '#b58900', '#44b78b']};

    function numbers(table, column) {
        return [...table.tBodies[0].rows].map(function(row) {
            const text = row.cells[column].dataset.value;
            return text === '' ? null : Number(text);
        });
    }

    function draw() {
        document.querySelectorAll('.rj-chart').forEach(function(place) {
            const table = document.getElementById(place.dataset.table || 'rj-numbers');
            place.replaceChildren();
            if (!table || !table.tBodies[0].rows.length || !window.uPlot) {
                return;
            }
            const columns = place.dataset.columns.split(' ').map(Number);
            const colour = getComputedStyle(document.body).getPropertyValue('--body-fg') || '#333';
            const grid = {stroke: 'rgba(128, 128, 128, 0.25)', width: 1};
            const axis = {stroke: colour.trim(), grid: grid, ticks: grid};
            const heads = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
            const series = COLOURS[place.dataset.chart].map(function(one, number) {
                return {label: heads[columns[number]], stroke: one, width: 2, points: {size: 5}};
            });
            // Times as the table beside it has them: of the page's time zone, with no month's name.
            const zone = (seconds) => window.uPlot.tzDate(new Date(seconds * 1000), table.dataset.zone);
            const short = window.uPlot.fmtDate(table.dataset.days ? '{MM}-{DD} {HH}:{mm}' : '{HH}:{mm}');
            new window.uPlot({
                width: place.clientWidth, height: 180, title: place.dataset.title,
                scales: {y: {range: (self, low, high) => [0, high > 0 ? high * 1.1 : 1]}},
                tzDate: zone, axes: [{...axis, values: (self, at) => at.map((one) => short(zone(one)))}, {...axis, size: 60}],
                series: [{label: heads[0], value: '{YYYY}-{MM}-{DD} {HH}:{mm}'}, ...series],
            }, [0, ...columns].map((column) => numbers(table, column)), place);
        });
    }

    window.addEventListener('DOMContentLoaded', draw);
    document.addEventListener('reliable_jobs:refreshed', draw);
    // A turned telephone, and the button that makes the page dark.
    let width = window.innerWidth;
    window.addEventListener('resize', function() {
        if (window.innerWidth !== width) {
            width = window.innerWidth;
            draw();
        }
    });
    new MutationObserver(draw).observe(document.documentElement, {attributeFilter: ['data-theme']});
})();
