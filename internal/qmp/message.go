package qmp

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// readMessage reads one JSON object, on one line or pretty-printed over many,
// of at most MaxMessage bytes, and decodes it.
func readMessage(r *bufio.Reader) (*message, error) {
	raw, err := readObject(r, MaxMessage)
	if err != nil {
		return nil, err
	}
	var m message
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, fmt.Errorf("malformed QMP message: %w", err)
	}
	return &m, nil
}

// readObject reads the bytes of the next JSON object, without whitespace around
// it. It finds the closing brace by counting, so that memory and work are bounded
// by max before any of it is decoded.
func readObject(r *bufio.Reader, max int) ([]byte, error) {
	var obj []byte
	depth, inString, escaped := 0, false, false
	for len(obj) < max {
		b, err := r.ReadByte()
		if err != nil {
			if err == io.EOF && depth > 0 {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		if depth == 0 {
			switch b {
			case ' ', '\t', '\r', '\n':
				continue
			case '{':
			default:
				return nil, fmt.Errorf("malformed QMP message: starts with %q", b)
			}
		}
		obj = append(obj, b)
		switch {
		case escaped:
			escaped = false
		case inString:
			escaped = b == '\\'
			inString = b != '"'
		case b == '"':
			inString = true
		case b == '{':
			depth++
		case b == '}':
			if depth--; depth == 0 {
				return obj, nil
			}
		}
	}
	return nil, errors.New("QMP message is too long")
}
