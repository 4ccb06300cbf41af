package main

import (
	"bytes"
	"fmt"
	"image/color"
	"slices"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// chart is a picture with two bars for each subject that has both numbers.
type chart struct {
	file, title string
	format      string // of the numbers at the bars
	series      [2]series
}

type series struct {
	name     string
	measures []measure // their sum
}

// Of each series: ours are strong, others are pale.
var (
	strong = [2]color.Color{color.NRGBA{0x1f, 0x5f, 0xa8, 0xff}, color.NRGBA{0xd9, 0x7a, 0x14, 0xff}}
	pale   = [2]color.Color{color.NRGBA{0xa3, 0xc4, 0xe6, 0xff}, color.NRGBA{0xf3, 0xcb, 0x9b, 0xff}}
)

// chartList are the charts of the documentation. Less is better in both.
var chartList = []chart{
	{"cpu.svg", "Processor time of both ends, seconds per gigabyte, one connection (less is better)", "%.2f",
		[2]series{{"up", cpuOfBoth("up", 1)}, {"down", cpuOfBoth("down", 1)}}},
	{"memory.svg", "Memory of an idle tunnel, KB (less is better)", "%.1f",
		[2]series{{"client", []measure{idleMemory("client")}}, {"server", []measure{idleMemory("server")}}}},
}

// charts draws what there are numbers for.
func (o *outcome) charts() (map[string][]byte, error) {
	drawn := map[string][]byte{}
	for _, c := range chartList {
		svg, err := c.draw(o.results, o.subjects)
		if err != nil {
			return nil, fmt.Errorf("chart %s: %w", c.file, err)
		}
		if svg != nil {
			drawn[c.file] = svg
		}
	}
	return drawn, nil
}

// Lengths of a chart.
const (
	chartWidth = 22 * vg.Centimeter
	barHeight  = 0.31 * vg.Centimeter
	rowHeight  = 0.92 * vg.Centimeter
	edges      = 2.8 * vg.Centimeter // title, axis and margins
	margin     = 0.2 * vg.Centimeter
)

// draw returns an SVG picture, or nil if there is nothing to show.
func (c chart) draw(r *results, subjects []subject) ([]byte, error) {
	var names []string
	var bars [2]plotter.Values
	for _, s := range slices.Backward(subjects) { // axes go up
		first, ok := r.total(s.name, c.series[0].measures...)
		second, ok2 := r.total(s.name, c.series[1].measures...)
		if !ok || !ok2 {
			continue
		}
		names = append(names, s.name)
		bars[0], bars[1] = append(bars[0], max(first, 0)), append(bars[1], max(second, 0))
	}
	if len(names) == 0 {
		return nil, nil
	}
	p := newPlot(c.title, len(names))
	for i, s := range c.series {
		if err := addBars(p, i, s.name, c.format, names, bars[i]); err != nil {
			return nil, err
		}
	}
	p.NominalY(names...)
	p.Y.Width, p.Y.Tick.Length, p.Y.Padding = 0, 0, 0.4*vg.Centimeter
	p.X.Max *= 1.08 // room for the numbers

	canvas := vgsvg.New(chartWidth, edges+rowHeight*vg.Length(len(names)))
	whole := draw.New(canvas)
	whole.SetColor(color.White) // also where the page is dark
	whole.Fill(whole.Rectangle.Path())
	p.Draw(draw.Crop(whole, margin, -margin, margin, -margin))
	var svg bytes.Buffer
	_, err := canvas.WriteTo(&svg)
	// Where there is no Liberation, there are fonts as wide as it.
	return bytes.ReplaceAll(svg.Bytes(), []byte("font-family:Liberation Sans;"), []byte("font-family:Liberation Sans,Arial,Helvetica,sans-serif;")), err
}

// newPlot returns an empty plot for so many rows.
func newPlot(title string, rows int) *plot.Plot {
	p := plot.New()
	p.BackgroundColor = nil
	p.Title.Text, p.Title.Padding = title, 0.3*vg.Centimeter
	p.X.Min, p.Y.Min, p.Y.Max = 0, -0.6, float64(rows)-0.4
	p.Legend.Top, p.Legend.XOffs, p.Legend.Padding = true, -0.3*vg.Centimeter, 0.1*vg.Centimeter
	for _, style := range []*draw.TextStyle{&p.Title.TextStyle, &p.X.Tick.Label, &p.Y.Tick.Label, &p.Legend.TextStyle} {
		style.Font.Variant = "Sans"
	}
	grid := plotter.NewGrid()
	grid.Horizontal.Color = nil
	p.Add(grid)
	return p
}

// addBars adds the bars of series i, with their numbers at the end.
func addBars(p *plot.Plot, i int, name, format string, names []string, values plotter.Values) error {
	offset := barHeight * (0.5 - vg.Length(i))
	ours, others := make(plotter.Values, len(values)), make(plotter.Values, len(values))
	var numbers plotter.XYLabels
	for row, v := range values {
		if strings.HasPrefix(names[row], "raimon") {
			ours[row] = v
		} else {
			others[row] = v
		}
		numbers.XYs = append(numbers.XYs, plotter.XY{X: v, Y: float64(row)})
		numbers.Labels = append(numbers.Labels, fmt.Sprintf(format, v))
	}
	labels, err := plotter.NewLabels(numbers)
	if err != nil {
		return err
	}
	labels.Offset = vg.Point{X: 0.1 * vg.Centimeter, Y: offset}
	for row := range labels.TextStyle {
		style := &labels.TextStyle[row]
		style.Font.Variant, style.Font.Size, style.YAlign = "Sans", 8, draw.YCenter
	}
	for _, part := range []struct {
		values plotter.Values
		color  color.Color
	}{{others, pale[i]}, {ours, strong[i]}} {
		bars, err := plotter.NewBarChart(part.values, barHeight)
		if err != nil {
			return err
		}
		bars.Horizontal, bars.Color, bars.LineStyle.Width, bars.Offset = true, part.color, 0, offset
		p.Add(bars)
		if part.color == strong[i] {
			p.Legend.Add(name, bars)
		}
	}
	p.Add(labels)
	return nil
}
