package table

import (
	"fmt"
	"strconv"
	"time"
)

// Size renders bytes for people, in powers of 1024: "712", "4.5K", "1.2G".
func Size(n float64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return strconv.FormatFloat(n, 'f', 0, 64)
	}
	i := -1
	for ; n >= 1024 && i < len(units)-1; i++ {
		n /= 1024
	}
	if n < 9.95 {
		return fmt.Sprintf("%.1f%c", n, units[i])
	}
	return fmt.Sprintf("%.0f%c", n, units[i])
}

// Seconds renders a duration for people: "0.42s", "3m07s", "5h12m", "12d04h".
func Seconds(s float64) string {
	if !(s >= 0 && s < 1e9) { // no machine runs for 30 years
		return strconv.FormatFloat(s, 'g', -1, 64) + "s"
	}
	switch d := time.Duration(s * float64(time.Second)); {
	case d < time.Minute:
		return fmt.Sprintf("%.2fs", s)
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", d/time.Minute, d%time.Minute/time.Second)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%02dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	days := int64(s / 86400)
	return fmt.Sprintf("%dd%02dh", days, (int64(s)-days*86400)/3600)
}
