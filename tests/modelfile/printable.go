// Prints the lengths of runs of code points from 0, not printable and printable in turn.
package main

import (
	"fmt"
	"strconv"
	"unicode"
)

func main() {
	printable, start := false, rune(0)
	for r := rune(0); r <= unicode.MaxRune; r++ {
		if strconv.IsPrint(r) != printable {
			fmt.Print(r-start, " ")
			printable, start = !printable, r
		}
	}
}
