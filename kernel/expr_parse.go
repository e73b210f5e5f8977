package kernel

import (
	"fmt"
	"strings"
)

// exprNode is one node of a parsed expression.
type exprNode struct {
	op   exprOp
	name string    // opName: symbol; opMember: member; opCast: base type
	num  uint64    // opNumber; opCast: how many times *
	x, y *exprNode // operands
}

type exprOp uint8

const (
	opName   exprOp = iota
	opNumber        // num
	opMember        // x.name
	opIndex         // x[y]
	opDeref         // *x
	opAddr          // &x
	opNeg           // -x
	opCast          // (name *…)x
	opAdd           // x + y
	opSub           // x - y
	opPerCPU        // per_cpu(x, y)
)

// String writes the expression with parentheses around every operation, so that it
// parses to the same tree again.
func (n *exprNode) String() string {
	switch n.op {
	case opName:
		return n.name
	case opNumber:
		return fmt.Sprint(n.num)
	case opMember:
		return fmt.Sprintf("(%v).%s", n.x, n.name)
	case opIndex:
		return fmt.Sprintf("(%v)[%v]", n.x, n.y)
	case opDeref:
		return fmt.Sprintf("*(%v)", n.x)
	case opAddr:
		return fmt.Sprintf("&(%v)", n.x)
	case opNeg:
		return fmt.Sprintf("-(%v)", n.x)
	case opCast:
		// Written as a struct or with its stars, a type is one whatever follows.
		return fmt.Sprintf("(%s %s)(%v)", n.name, strings.Repeat("*", int(n.num)), n.x)
	case opAdd:
		return fmt.Sprintf("(%v) + (%v)", n.x, n.y)
	case opSub:
		return fmt.Sprintf("(%v) - (%v)", n.x, n.y)
	}
	return fmt.Sprintf("per_cpu(%v, %v)", n.x, n.y)
}

type exprParser struct {
	toks  []token
	depth int
}

// parseExpr parses an expression.
func parseExpr(s string) (*exprNode, error) {
	toks, err := lexExpr(s)
	if err != nil {
		return nil, err
	}
	p := &exprParser{toks: toks}
	n, err := p.sum()
	if err != nil {
		return nil, err
	}
	if t := p.peek(); t.kind != tokEnd {
		return nil, p.unexpected("an operator")
	}
	return n, nil
}

func (p *exprParser) peek() token { return p.toks[0] }

func (p *exprParser) next() token {
	t := p.toks[0]
	if t.kind != tokEnd {
		p.toks = p.toks[1:]
	}
	return t
}

// take consumes the punctuation text if it comes next.
func (p *exprParser) take(text string) bool {
	if t := p.peek(); t.kind != tokPunct || t.text != text {
		return false
	}
	p.next()
	return true
}

func (p *exprParser) unexpected(want string) error {
	t := p.peek()
	return fmt.Errorf("%w at %d: %s expected, not %v", ErrSyntax, t.at, want, t)
}

// enter bounds how deep expressions nest.
func (p *exprParser) enter() error {
	if p.depth++; p.depth > maxExprDepth {
		return fmt.Errorf("%w at %d: nested more than %d deep", ErrSyntax, p.peek().at, maxExprDepth)
	}
	return nil
}

// sum is unary { (+|-) unary }.
func (p *exprParser) sum() (*exprNode, error) {
	if err := p.enter(); err != nil {
		return nil, err
	}
	defer func() { p.depth-- }()
	n, err := p.unary()
	for err == nil {
		op := opAdd
		switch {
		case p.take("+"):
		case p.take("-"):
			op = opSub
		default:
			return n, nil
		}
		var y *exprNode
		if y, err = p.unary(); err == nil {
			n = &exprNode{op: op, x: n, y: y}
		}
	}
	return nil, err
}

// unary is (*|&|-) unary, a cast of one, or a postfix expression.
func (p *exprParser) unary() (*exprNode, error) {
	if err := p.enter(); err != nil {
		return nil, err
	}
	defer func() { p.depth-- }()
	for text, op := range map[string]exprOp{"*": opDeref, "&": opAddr, "-": opNeg} {
		if p.take(text) {
			x, err := p.unary()
			if err != nil {
				return nil, err
			}
			return &exprNode{op: op, x: x}, nil
		}
	}
	if name, stars, ok := p.cast(); ok {
		x, err := p.unary()
		if err != nil {
			return nil, err
		}
		return &exprNode{op: opCast, name: name, num: uint64(stars), x: x}, nil
	}
	return p.postfix()
}

// Words that make what is in parentheses a type.
var typeWords = map[string]bool{
	"struct": true, "union": true, "enum": true, "unsigned": true, "signed": true, "const": true,
	"long": true, "int": true, "short": true, "char": true, "void": true, "_Bool": true, "bool": true,
}

// cast consumes "(type)" if what comes next is that and no expression in
// parentheses: it has a word of a type, or a *, or is followed by an operand.
func (p *exprParser) cast() (name string, stars int, ok bool) {
	toks := p.toks
	if toks[0].kind != tokPunct || toks[0].text != "(" {
		return "", 0, false
	}
	i, sure := 1, false
	var words []string
	for ; toks[i].kind == tokName; i++ {
		if typeWords[toks[i].text] {
			sure = true
		}
		if toks[i].text != "const" {
			words = append(words, toks[i].text)
		}
	}
	for ; toks[i].kind == tokPunct && toks[i].text == "*"; i++ {
		stars++
	}
	if len(words) == 0 || toks[i].kind != tokPunct || toks[i].text != ")" {
		return "", 0, false
	}
	i++
	after := toks[i]
	operand := after.kind == tokName || after.kind == tokNumber ||
		after.kind == tokPunct && strings.Contains("(*&", after.text)
	if !sure && stars == 0 && (len(words) > 1 || !operand) {
		return "", 0, false
	}
	p.toks = toks[i:]
	return strings.Join(words, " "), stars, true
}

// postfix is a primary expression and what follows it.
func (p *exprParser) postfix() (*exprNode, error) {
	n, err := p.primary()
	for err == nil {
		switch {
		case p.take("."), p.take("->"):
			t := p.peek()
			if t.kind != tokName {
				return nil, p.unexpected("a member's name")
			}
			p.next()
			n = &exprNode{op: opMember, name: t.text, x: n}
		case p.take("["):
			var y *exprNode
			if y, err = p.sum(); err != nil {
				return nil, err
			}
			if !p.take("]") {
				return nil, p.unexpected(`"]"`)
			}
			n = &exprNode{op: opIndex, x: n, y: y}
		default:
			return n, nil
		}
	}
	return nil, err
}

// primary is a name, a number, per_cpu(x, n) or an expression in parentheses.
func (p *exprParser) primary() (*exprNode, error) {
	switch t := p.peek(); {
	case t.kind == tokName && t.text == "per_cpu":
		p.next()
		return p.perCPU()
	case t.kind == tokName:
		p.next()
		return &exprNode{op: opName, name: t.text}, nil
	case t.kind == tokNumber:
		p.next()
		return &exprNode{op: opNumber, num: t.num}, nil
	case p.take("("):
		n, err := p.sum()
		if err != nil {
			return nil, err
		}
		if !p.take(")") {
			return nil, p.unexpected(`")"`)
		}
		return n, nil
	}
	return nil, p.unexpected("a name, a number or a parenthesis")
}

func (p *exprParser) perCPU() (*exprNode, error) {
	if !p.take("(") {
		return nil, p.unexpected(`"("`)
	}
	x, err := p.sum()
	if err != nil {
		return nil, err
	}
	if !p.take(",") {
		return nil, p.unexpected(`","`)
	}
	y, err := p.sum()
	if err != nil {
		return nil, err
	}
	if !p.take(")") {
		return nil, p.unexpected(`")"`)
	}
	return &exprNode{op: opPerCPU, x: x, y: y}, nil
}
