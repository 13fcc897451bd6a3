package cosmosfake

import "math"

// What point reads cost, in units, by KB. Source: Microsoft's "Request Units in
// Azure Cosmos DB" and its capacity planner. With strong consistency a read costs
// twice that. It is a model: a bill is made by the service.
var readTable = []struct{ kb, units float64 }{{1, 1}, {64, 4.8}, {256, 20}, {2048, 292}}

// strongly: reads are confirmed by two replicas.
const strongly = 2

func tableUnits(bytes int) float64 {
	kb := float64(bytes) / 1024
	last := readTable[0]
	if kb <= last.kb {
		return last.units
	}
	for _, next := range readTable[1:] {
		if kb <= next.kb {
			share := math.Log(kb/last.kb) / math.Log(next.kb/last.kb)
			return last.units * math.Pow(next.units/last.units, share)
		}
		last = next
	}
	return last.units * kb / last.kb
}

func readUnits(bytes int) float64 { return round(strongly * tableUnits(bytes)) }

// writeUnits: a write costs about five times a read that is not strong.
func writeUnits(it *item) float64 { return round(5 * tableUnits(len(it.raw))) }

// indexUnits: each indexed property costs a little with each write.
func indexUnits(c *container, doc map[string]any) float64 {
	n := 0.0
	for _, p := range c.indexed {
		if _, ok := doc[p]; ok {
			n += 0.2
		}
	}
	return n
}

// queryUnits: a query costs 2.3 for itself, and a little for each item by its size.
func queryUnits(items []*item) float64 {
	u := 2.3
	for _, it := range items {
		u += 0.05 + 0.03*float64(len(it.raw))/1024
	}
	return round(strongly * u)
}

func round(u float64) float64 { return math.Round(u*100) / 100 }
