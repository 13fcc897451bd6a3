// Command scale computes what following all public modules, and serving a large public
// site, would cost: the tables of docs/scale.md. What they rest on are the constants below,
// each with its source; what a database operation costs is read from docs/azure.md, where
// a test measures it. It prints the page; -w writes it.
//
//	go run ./bench/scale -w
package main

import (
	"flag"
	"fmt"
	"math"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

const (
	azurePage = "docs/azure.md"
	scalePage = "docs/scale.md"
	begin     = "<!-- figures: made by go run ./bench/scale -w -->\n"
	end       = "<!-- end of figures -->\n"
)

// figure is something that the tables rest on.
type figure struct {
	name   string
	value  float64
	unit   string
	source string
}

// The assumptions, and what was measured. A figure that is "assumed" is nobody's: change
// it here, and the page changes.
var (
	publicVersions = figure{"module versions in the public checksum database, November 2026", 72e6, "", "issue 3 of this project"}
	publicDays     = figure{"days since it began (August 2019)", 2645, "days", "counted"}
	growth         = figure{"new versions a day now, over the mean of all those days", 2, "×", "assumed"}
	peak           = figure{"the busiest hour, over the mean", 5, "×", "assumed"}
	fillDays       = figure{"days in which the first fill is to end", 30, "days", "chosen"}

	zipBytes  = figure{"a zip", 288_976, "bytes", "mean of 401 versions of 141 modules, make test-real, 2026-11-25; those are well-known modules, the mean of all is not known"}
	modBytes  = figure{"a go.mod file", 238, "bytes", "the same run"}
	infoBytes = figure{"an .info", 195, "bytes", "the same run"}
	itemBytes = figure{"what else Cosmos DB keeps of a version: names, marks and system properties of 3 items", 1_500, "bytes", "assumed"}

	upstreamPerVersion = figure{"requests to the mirror for a version: .zip, .info", 2, "", "crawler: fetchZip, complete"}
	sumdbPerVersion    = figure{"requests to the checksum database for a version: a lookup, and a share of tiles", 1.5, "", "assumed; tiles are kept"}
	feedPage           = figure{"entries of an index page", 2_000, "", "crawler: feedPage"}
	upstreamSeconds    = figure{"an answer of the mirror takes", 0.1, "s", "assumed"}
	storageSeconds     = figure{"an answer of Azure takes", 0.005, "s", "assumed: the same region"}
	crawlParallel      = figure{"versions of a feed that are fetched at once (crawl-parallel)", 8, "", "default"}
	hostConnections    = figure{"requests at once to one host, ahead of demand (half of host-connections)", 16, "", "default"}
	crawlerCPUPerMB    = figure{"CPU time for a MB of a version's files, all roles, out of a git repository", 0.025, "s", "go run ./bench --only git, 2026-11-25: 61.9 s for 40 tags of 62 MB; a mirror's zip is cheaper"}
	coreUse            = figure{"a core is used up to", 0.5, "", "assumed"}

	requests      = figure{"requests of the site a day", 50e6, "", "assumed"}
	listShare     = figure{"of these, lists and @latest", 0.30, "", "assumed"}
	infoShare     = figure{"of these, .info and .mod", 0.60, "", "assumed"}
	zipShare      = figure{"of these, zips", 0.10, "", "assumed"}
	missShare     = figure{"of files, what no proxy's cache has", 0.10, "", "assumed; a CDN before it makes it less"}
	activeModules = figure{"modules whose list somebody asked for in the last 72 hours (refresh-ahead)", 200_000, "", "assumed"}
	listEvery     = figure{"a list that does not change is looked at every", 48 * 60, "s", "four fifths of list-max-stale (1h), docs/ahead.md"}
	watched       = figure{"lists that one crawler remembers to look at", 50_000, "", "crawler: maxWatched"}
	newAsked      = figure{"versions that nobody had, asked for a day", 20_000, "", "assumed, as in docs/azure.md"}
	proxyMicros   = figure{"CPU time of a proxy for a cached answer", 40, "µs", "go run ./bench --only warm, 2026-11-25: 21 to 25 µs for .info, .mod, lists and @latest, 40 µs for a zip of 100 KB"}
	proxyGbit     = figure{"a proxy sends", 1, "Gbit/s", "assumed: a virtual machine's share"}
	proxyCache    = figure{"a proxy's cache (cache-max-bytes)", 10 << 30, "bytes", "default"}
	hotVersions   = figure{"versions of an active module that are asked for", 3, "", "assumed"}

	indexHead  = figure{"versions a second that the index in Cosmos DB takes", 5_000, "", "docs/adr/0007"}
	diskVolume = figure{"a volume for the disk store", 16 << 40, "bytes", "assumed"}

	perMillionUnits = figure{"a million request units, serverless", 0.25, "$", "docs/azure.md"}
	perCosmosGB     = figure{"a GB in Cosmos DB a month", 0.25, "$", "docs/azure.md"}
	perBlobGB       = figure{"a GB in Blob Storage a month", 0.018, "$", "docs/azure.md"}
	perBlobWrite    = figure{"10,000 writes of blobs", 0.05, "$", "docs/azure.md: storage/cosmos/costs_test.go"}
	perBlobRead     = figure{"10,000 reads of blobs", 0.004, "$", "docs/azure.md: storage/cosmos/costs_test.go"}
)

func all() []figure {
	return []figure{
		publicVersions, publicDays, growth, peak, fillDays, zipBytes, modBytes, infoBytes, itemBytes,
		upstreamPerVersion, sumdbPerVersion, feedPage, upstreamSeconds, storageSeconds, crawlParallel, hostConnections, crawlerCPUPerMB, coreUse,
		requests, listShare, infoShare, zipShare, missShare, activeModules, listEvery, watched, newAsked, proxyMicros, proxyGbit, proxyCache, hotVersions,
		indexHead, diskVolume, perMillionUnits, perCosmosGB, perBlobGB, perBlobWrite, perBlobRead,
	}
}

const (
	daySeconds = 86_400
	monthDays  = 30
	gb         = 1e9
)

// cost is what database operations need.
type cost struct{ trips, units float64 }

// operations reads the table of docs/azure.md.
func operations(page string) (map[string]cost, error) {
	ops := map[string]cost{}
	for _, m := range regexp.MustCompile(`(?m)^\| ([^|]+) \| (\d+) \| ([0-9.]+) \| \d+ \| \d+ \|$`).FindAllStringSubmatch(page, -1) {
		trips, err1 := strconv.ParseFloat(m[2], 64)
		units, err2 := strconv.ParseFloat(m[3], 64)
		if err1 != nil || err2 != nil {
			return nil, fmt.Errorf("%s: %q is not a row of the costs", azurePage, m[0])
		}
		ops[m[1]] = cost{trips, units}
	}
	return ops, nil
}

// step is an operation, and how often it is needed.
type step struct {
	name  string
	times float64
}

// aVersion is what the database does for a version that is fetched ahead of demand: a job
// for the zip, in which one for .info is begun and ended, and before them a look whether
// the list is to be made anew.
var aVersion = []step{
	{"enqueue", 1}, {"claim", 1}, {"done", 2}, {"start (enqueue and claim)", 1},
	{"put, zip of 100 KB in Blob Storage", 1}, {"put of .mod alone", 1}, // the second stands for the put of .info
	{".info", 4},             // is it there? .zip, .mod and .info, each of them absent; and .zip when it is done
	{"list read (known)", 1}, // what is known of the module's list
}

// aList is what it does for a list that is looked at again.
var aList = []step{{"list read (known)", 4}, {"enqueue", 1}, {"claim", 1}, {"done", 1}, {"list kept (known)", 1}}

func sum(ops map[string]cost, steps []step) (c cost, err error) {
	for _, s := range steps {
		op, ok := ops[s.name]
		if !ok {
			return c, fmt.Errorf("%s has no operation %q", azurePage, s.name)
		}
		c.trips += s.times * op.trips
		c.units += s.times * op.units
	}
	return c, nil
}

// figures computes the tables.
func figures(azure string) (string, error) {
	ops, err := operations(azure)
	if err != nil {
		return "", err
	}
	version, err := sum(ops, aVersion)
	if err != nil {
		return "", err
	}
	list, err := sum(ops, aList)
	if err != nil {
		return "", err
	}
	read, err := sum(ops, []step{{".info", 1}})
	if err != nil {
		return "", err
	}
	idle, err := sum(ops, []step{{"an idle look at the queue", 1}})
	if err != nil {
		return "", err
	}

	dollars := func(units float64) float64 { return units / 1e6 * perMillionUnits.value }
	metadata := modBytes.value + infoBytes.value + itemBytes.value
	versionSeconds := upstreamPerVersion.value*upstreamSeconds.value + version.trips*storageSeconds.value
	versionCPU := zipBytes.value / 1e6 * crawlerCPUPerMB.value

	// Following.
	type load struct{ perSecond, perDay float64 }
	follow := func(perSecond float64) load { return load{perSecond, perSecond * daySeconds} }
	fill := follow(publicVersions.value / fillDays.value / daySeconds)
	steady := follow(publicVersions.value / publicDays.value * growth.value / daySeconds)
	busiest := follow(steady.perSecond * peak.value)
	crawlers := func(perSecond float64) float64 {
		byConnections := perSecond * upstreamPerVersion.value * upstreamSeconds.value / hostConnections.value
		byCPU := perSecond * versionCPU / coreUse.value
		return math.Ceil(max(byConnections, byCPU))
	}
	var b strings.Builder
	row := func(cells ...string) { b.WriteString("| " + strings.Join(cells, " | ") + " |\n") }
	head := func(cells ...string) {
		row(cells...)
		b.WriteString("|" + strings.Repeat("---|", len(cells)) + "\n")
	}
	per := func(f func(load) string) (cells []string) {
		for _, l := range []load{fill, steady, busiest} {
			cells = append(cells, f(l))
		}
		return cells
	}
	add := func(name string, f func(load) string) { row(append([]string{name}, per(f)...)...) }

	fmt.Fprintf(&b, "## Following all public modules\n\nA version costs %s units in %s database requests, and takes %.2f s: the mirror's answers one after the other, then the database's.\n\n",
		number(version.units), number(version.trips), versionSeconds)
	head("", fmt.Sprintf("first fill, %s versions in %s days", number(publicVersions.value), number(fillDays.value)), "then, on a mean day", "then, in the busiest hour")
	add("versions a second", func(l load) string { return number(l.perSecond) })
	add("requests a second to the mirror", func(l load) string {
		return number(l.perSecond * (upstreamPerVersion.value + 1/feedPage.value))
	})
	add("requests a second to the checksum database", func(l load) string { return number(l.perSecond * sumdbPerVersion.value) })
	add("from the mirror", func(l load) string { return number(l.perSecond*zipBytes.value*8/1e6) + " Mbit/s" })
	add("request units a second", func(l load) string { return number(l.perSecond * version.units) })
	add("versions being fetched at once", func(l load) string { return number(math.Ceil(l.perSecond * versionSeconds)) })
	add("crawlers of one core", func(l load) string { return number(crawlers(l.perSecond)) })
	b.WriteString("\n")
	head("", "at once, for the first fill", "a month, after it")
	row("request units", money(dollars(publicVersions.value*version.units)), money(dollars(steady.perDay*monthDays*version.units)))
	row("writes of zips", money(publicVersions.value/1e4*perBlobWrite.value), money(steady.perDay*monthDays/1e4*perBlobWrite.value))
	zipGB, metaGB := publicVersions.value*zipBytes.value/gb, publicVersions.value*metadata/gb
	row(fmt.Sprintf("zips kept: %s GB", number(zipGB)), "", money(zipGB*perBlobGB.value))
	row(fmt.Sprintf("metadata kept: %s GB", number(metaGB)), "", money(metaGB*perCosmosGB.value))
	grow := steady.perDay * monthDays
	row(fmt.Sprintf("each month more: %s GB", number(grow*(zipBytes.value+metadata)/gb)), "", money(grow*zipBytes.value/gb*perBlobGB.value+grow*metadata/gb*perCosmosGB.value))

	// Serving.
	second := requests.value / daySeconds
	files := requests.value * (infoShare.value + zipShare.value)
	reads := files * missShare.value
	looks := activeModules.value * daySeconds / listEvery.value
	listReads := requests.value * listShare.value * missShare.value
	units := []struct {
		what string
		n    float64
		each float64
	}{
		{"files that no proxy has in its cache", reads, read.units},
		{"lists that no proxy has in its cache", listReads, ops["list read (known)"].units},
		{"lists looked at before they are old", looks, list.units},
		{"versions that nobody had", newAsked.value, version.units},
		{"idle looks at the queue, two storage replicas", 2 * daySeconds, idle.units},
	}
	fmt.Fprintf(&b, "\n## Serving a large public site\n\n%s requests a day: %s a second, %s in the busiest hour.\n\n", number(requests.value), number(second), number(second*peak.value))
	head("database", "a day", "units each", "units a month", "a month")
	total := 0.0
	for _, u := range units {
		month := u.n * u.each * monthDays
		total += month
		row(u.what, number(u.n), number(u.each), number(month), money(dollars(month)))
	}
	row("together", "", "", number(total), money(dollars(total)))
	zipReads := requests.value * zipShare.value * missShare.value
	sent := requests.value * zipShare.value * zipBytes.value
	b.WriteString("\n")
	head("else", "")
	row("reads of zips, a month", money(zipReads*monthDays/1e4*perBlobRead.value))
	row("sent to clients, a day", number(sent/gb)+" GB, almost all of it zips; what it costs is the network's price")
	row("in the busiest hour", number(sent/daySeconds*peak.value*8/1e6)+" Mbit/s")
	proxies := max(2, math.Ceil(max(second*peak.value*proxyMicros.value/1e6/coreUse.value, sent/daySeconds*peak.value*8/1e9/proxyGbit.value/coreUse.value)))
	row("proxies of one core", number(proxies)+": two at least, one may be away")
	row("lists a second asked of the mirror and of git hosts", number(looks/daySeconds))
	row("crawlers that remember the lists", number(math.Ceil(activeModules.value/watched.value)))

	// Bends.
	type bend struct {
		bound       string
		has, needs  float64
		unit, after string
	}
	bends := []bend{
		{"versions a second out of one feed, first fill", crawlParallel.value / versionSeconds, fill.perSecond, "", "raise `crawl-parallel`: one crawler follows a feed, all do its jobs"},
		{"versions a second out of one feed, busiest hour", crawlParallel.value / versionSeconds, busiest.perSecond, "", "the same"},
		{"requests a second to the mirror from one crawler, first fill", hostConnections.value / upstreamSeconds.value, fill.perSecond * upstreamPerVersion.value, "", "more crawlers, or `host-connections`; what the mirror thinks of it is not known"},
		{"lists looked after by one crawler", watched.value, activeModules.value, "", "more crawlers; lists beyond are as fresh as demand makes them"},
		{"versions a second into the index", indexHead.value, fill.perSecond, "", "a second row of pages, which is not written"},
		{"the disk store's volume", diskVolume.value / gb, zipGB + metaGB, " GB", "Azure; the disk store is one process"},
		{"a proxy's cache for what is asked for", proxyCache.value / gb, activeModules.value * hotVersions.value * zipBytes.value / gb, " GB", "raise `cache-max-bytes`, or a CDN; misses are reads of Blob Storage"},
		{"a proxy's core, busiest hour", coreUse.value, second * peak.value * proxyMicros.value / 1e6, "", "more proxies"},
		{"a proxy's network, busiest hour", proxyGbit.value * 1e3, sent / daySeconds * peak.value * 8 / 1e6, " Mbit/s", "more proxies, or a CDN"},
	}
	slices.SortStableFunc(bends, func(a, b bend) int { return int(math.Copysign(1, b.needs/b.has-a.needs/a.has)) })
	b.WriteString("\n## Where it bends first\n\nThe bounds with the defaults and one of each role, the tightest first: above 1 the default is not enough.\n\n")
	head("bound", "it has", "it needs", "needs by has", "then")
	for _, x := range bends {
		row(x.bound, number(x.has)+x.unit, number(x.needs)+x.unit, fmt.Sprintf("%.2g", x.needs/x.has), x.after)
	}

	b.WriteString("\n## What this rests on\n\n")
	head("figure", "value", "source")
	for _, f := range all() {
		value := number(f.value)
		if f.unit != "" {
			value += " " + f.unit
		}
		row(f.name, value, f.source)
	}
	return b.String(), nil
}

// number writes three digits of what is small, and thousands apart.
func number(x float64) string {
	switch {
	case x == 0:
		return "0"
	case x < 1:
		return strconv.FormatFloat(x, 'g', 2, 64)
	case x < 100 && x != math.Trunc(x):
		return strconv.FormatFloat(x, 'f', 1, 64)
	}
	digits := strconv.FormatFloat(math.Round(x), 'f', 0, 64)
	var b strings.Builder
	for i, c := range digits {
		if i > 0 && (len(digits)-i)%3 == 0 {
			b.WriteByte(',')
		}
		b.WriteRune(c)
	}
	return b.String()
}

func money(x float64) string {
	if x < 1 {
		return "below $1"
	}
	return "$" + number(math.Round(x))
}

// update puts the figures into a page.
func update(page, figures string) (string, error) {
	before, rest, ok1 := strings.Cut(page, begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		return "", fmt.Errorf("%s has no place for the figures", scalePage)
	}
	return before + begin + figures + end + after, nil
}

func run(write bool) error {
	azure, err := os.ReadFile(azurePage)
	if err != nil {
		return fmt.Errorf("run it in the folder of the module: %w", err)
	}
	text, err := figures(string(azure))
	if err != nil {
		return err
	}
	page, err := os.ReadFile(scalePage)
	if err != nil {
		return err
	}
	made, err := update(string(page), text)
	if err != nil {
		return err
	}
	if write {
		return os.WriteFile(scalePage, []byte(made), 0o644)
	}
	fmt.Print(made)
	return nil
}

func main() {
	write := flag.Bool("w", false, "write "+scalePage)
	flag.Parse()
	if err := run(*write); err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(1)
	}
}
