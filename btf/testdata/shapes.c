/* Types of every kind a kernel has, and a program that says where their members lie:
 * path, offset and size in bytes, and of a bit field the first bit and the width. */
#include <stddef.h>
#include <stdio.h>
#include <string.h>

enum color { RED, GREEN = 7, BLUE = -3 };
enum big { HUGE_VALUE = 0x100000000L };
typedef unsigned int u32;
typedef struct { int counter; } atomic_t;
struct opaque;

struct list_head {
	struct list_head *next, *prev;
};

struct inner {
	char tag;
	union {
		long wide;
		struct {
			short low, high;
		};
	};
};

struct outer {
	struct list_head list;
	atomic_t count;
	u32 ready : 1, mode : 5, wide : 20;
	signed int sign : 4;
	unsigned long long far : 37;
	struct inner in[3];
	const volatile char *name;
	struct opaque *hidden;
	int (*call)(struct outer *self, enum color c, ...);
	enum color color;
	enum big big;
	_Bool yes;
	u32 grid[2][5];
	struct {
		signed char x, y;
	} point;
	double real;
	struct outer *const self;
	long tail[];
};

union both {
	struct outer o;
	unsigned char bytes[16];
};

struct __attribute__((packed)) tight {
	char a;
	int b;
	struct inner c;
};

struct outer object;
union both both;
static u32 numbers[6];

#define PLACE(type, path) \
	printf("%s.%s %zu %zu 0 0\n", #type, #path, offsetof(struct type, path), sizeof(((struct type *)0)->path))

static void bits(const char *path, const unsigned char *p, size_t n, size_t size)
{
	size_t first = 0, count = 0;
	for (size_t i = 0; i < n * 8; i++)
		if (p[i / 8] >> i % 8 & 1) {
			if (!count++)
				first = i;
		}
	printf("%s %zu %zu %zu %zu\n", path, first / 8, size, first % 8, count);
}

#define BITS(field, size) do { \
		static union { struct outer o; unsigned char raw[sizeof(struct outer)]; } u; \
		memset(&u, 0, sizeof u); \
		u.o.field = -1; \
		bits("outer." #field, u.raw, sizeof u.raw, size); \
	} while (0)

int main(void)
{
	numbers[1] = object.in[1].tag;
	PLACE(list_head, prev);
	PLACE(inner, tag);
	PLACE(inner, wide);
	PLACE(inner, high);
	PLACE(outer, list);
	PLACE(outer, list.prev);
	PLACE(outer, count);
	PLACE(outer, count.counter);
	PLACE(outer, in);
	PLACE(outer, name);
	PLACE(outer, hidden);
	PLACE(outer, call);
	PLACE(outer, color);
	PLACE(outer, big);
	PLACE(outer, yes);
	PLACE(outer, grid);
	PLACE(outer, point);
	PLACE(outer, point.y);
	PLACE(outer, real);
	PLACE(outer, self);
	PLACE(tight, b);
	PLACE(tight, c);
	PLACE(tight, c.low);
	BITS(ready, 4);
	BITS(mode, 4);
	BITS(wide, 4);
	BITS(sign, 4);
	BITS(far, 8);
	printf("outer 0 %zu 0 0\n", sizeof(struct outer));
	printf("both 0 %zu 0 0\n", sizeof(union both));
	printf("u32 0 %zu 0 0\n", sizeof(u32));
	printf("atomic_t 0 %zu 0 0\n", sizeof(atomic_t));
	printf("outer.tail %zu 0 0 0\n", offsetof(struct outer, tail));
	return 0;
}
