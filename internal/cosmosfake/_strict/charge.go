package cosmosfake

import "math"

// readTable is what a point read costs in request units, by KB.
var readTable = []struct{ kb, units float64 }{{1, 1}, {64, 4.8}, {256, 20}, {2048, 292}}

const (
	errorCharge    = 1.0 // of 404, 409, 412
	queryCharge    = 2.3
	propertyCharge = 0.2 // for each indexed property that is written or taken away
)

// readCharge interpolates readTable, and goes on with its last slope.
func readCharge(bytes int) float64 {
	kb := float64(bytes) / 1024
	if kb <= readTable[0].kb {
		return readTable[0].units
	}
	i := 1
	for i < len(readTable)-1 && kb > readTable[i].kb {
		i++
	}
	a, b := readTable[i-1], readTable[i]
	return round(a.units + (b.units-a.units)*(kb-a.kb)/(b.kb-a.kb))
}

// writeCharge is for a write of so many bytes and indexed properties: for a replace
// those of the old item and of the new one.
func writeCharge(bytes, properties int) float64 {
	return round(5*readCharge(bytes) + propertyCharge*float64(properties))
}

// pageCharge is for a page of a query that loaded items of so many bytes.
func pageCharge(bytes int) float64 {
	if bytes == 0 {
		return queryCharge
	}
	return round(queryCharge + readCharge(bytes))
}

func round(u float64) float64 { return math.Round(u*100) / 100 }
