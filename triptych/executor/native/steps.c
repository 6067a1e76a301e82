/* What a step of a transformer is made of, for a core or a few: float32 in, float32 out.
 *
 * A step is a list of operations that is walked here, so that a small model's step costs its
 * arithmetic and not its calls. A row's numbers are the same bits whatever its neighbours are, and
 * whoever helps: every sum has one order. Each operation's specification is its twin of plain
 * PyTorch, the methods of `operations.Plain`. Knows pointers and sizes, which its caller has checked.
 */

#define _GNU_SOURCE
#include "crew.h"

#include <math.h>

#if !defined(LANES) && defined(__AVX512F__)
#define LANES 16
#elif !defined(LANES)
#define LANES 8 /* two registers of NEON or SSE where there is nothing wider */
#endif
#define PANEL (2 * LANES) /* columns of a product's weights that lie side by side */
#define LARGE 2000000     /* multiplications from which others may help */

typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef int32_t Int __attribute__((vector_size(4 * LANES)));
typedef float Loose __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
#define INLINE static inline __attribute__((always_inline))

enum { PRODUCT, NORM, SILU_MUL, EMBED, ANGLES, WRITE, ATTEND, ATTEND_TILES, PATCHES, ATTEND_SPANS };

/* What the fields mean stands with the operation that reads them. */
typedef struct {
    int32_t kind, rows, width, inner;
    int32_t heads, kv_heads, head_dim, block_size;
    int64_t block_stride;
    const void *a, *b, *c, *d;
    void *out;
    float number;
} Operation;

INLINE Vec load(const float *from) { return *(const Loose *)from; }
INLINE void store(float *to, Vec value) { *(Loose *)to = value; }
INLINE Vec fill(float value) { return value - (Vec){0}; }

/* The numbers from `at` on of a row of `width`; zeros behind its end, and for no row. */
INLINE Vec some(const float *row, int at, int width) {
    if (!row || at >= width) return (Vec){0};
    if (width - at >= LANES) return load(row + at);
    float held[LANES] = {0};
    memcpy(held, row + at, sizeof(float) * (width - at));
    return load(held);
}

INLINE void keep(float *row, int at, int width, Vec value) {
    if (width - at >= LANES) store(row + at, value);
    else if (at < width) memcpy(row + at, &value, sizeof(float) * (width - at));
}

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLED(v, ...) __builtin_shufflevector(v, v, __VA_ARGS__)
#define MERGED(v, w, ...) __builtin_shufflevector(v, w, __VA_ARGS__)
#else
#define SHUFFLED(v, ...) __builtin_shuffle(v, (Int){__VA_ARGS__})
#define MERGED(v, w, ...) __builtin_shuffle(v, w, (Int){__VA_ARGS__})
#endif

INLINE float sum(Vec v) {
#if LANES == 16
    v += SHUFFLED(v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    v += SHUFFLED(v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    v += SHUFFLED(v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
#else
    v += SHUFFLED(v, 4, 5, 6, 7, 0, 1, 2, 3);
    v += SHUFFLED(v, 2, 3, 0, 1, 6, 7, 4, 5);
#endif
    return v[0] + v[1];
}

INLINE Vec choose(Int mask, Vec yes, Vec no) { return (Vec)(((Int)yes & mask) | ((Int)no & ~mask)); }

/* e^x: 2^n times a polynomial on [-ln2 / 2, ln2 / 2] (Cephes' expf), within 2 units of the last
 * place; 0 below -87, as for -inf, and never above e^88. */
INLINE Vec exponential(Vec x) {
    Int is_small = x < fill(-87.0f);
    x = choose(is_small, fill(-87.0f), x);
    x = choose(x > fill(88.0f), fill(88.0f), x);
    Vec shifted = x * 1.44269504088896341f + 12582912.0f; /* 1.5 * 2^23: fractions are rounded off */
    Vec n = shifted - 12582912.0f;
    Vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    Vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    Int power = ((Int)shifted - (Int)fill(12582912.0f) + 127) << 23;
    return choose(is_small, (Vec){0}, p * (Vec)power);
}

/* A tile of ROWS rows and PANELS panels of a product: all its sums stay in registers, where the loops
 * over them are unrolled. */
#define ALL(I, COUNT) _Pragma("GCC unroll 16") for (int I = 0; I < (COUNT); I++)
#define TILE(ROWS, PANELS)                                                                         \
    static void tile_##ROWS##_##PANELS(const float *x, const float *weights, const float *bias,    \
                                       float *out, int inner, int width, int column) {             \
        Vec sums[ROWS][PANELS * 2];                                                                \
        ALL(r, ROWS) ALL(v, PANELS * 2) sums[r][v] = some(bias, column + v * LANES, width);        \
        for (int64_t k = 0; k < inner; k++) {                                                      \
            Vec w[PANELS * 2];                                                                     \
            __builtin_prefetch(weights + (PANELS * (int64_t)inner + k) * PANEL, 0, 2);             \
            ALL(v, PANELS * 2)                                                                     \
            w[v] = load(weights + (v / 2 * (int64_t)inner + k) * PANEL + v % 2 * LANES);           \
            ALL(r, ROWS) ALL(v, PANELS * 2) sums[r][v] += x[r * (int64_t)inner + k] * w[v];        \
        }                                                                                          \
        ALL(r, ROWS) ALL(v, PANELS * 2)                                                            \
        keep(out + r * (int64_t)width, column + v * LANES, width, sums[r][v]);                     \
    }

typedef void Tile(const float *, const float *, const float *, float *, int, int, int);
TILE(1, 1)
TILE(2, 1)
TILE(3, 1)
TILE(4, 1)
TILE(5, 1)
TILE(6, 1)
TILE(1, 4)
TILE(2, 2)
#if LANES == 16 /* with as many as 32 registers */
TILE(7, 1)
TILE(8, 1)
TILE(9, 1)
TILE(10, 1)
TILE(11, 1)
TILE(12, 1)
#define TALLEST 12
static Tile *const TILES[] = {tile_1_1, tile_2_1, tile_3_1, tile_4_1,  tile_5_1,  tile_6_1,
                              tile_7_1, tile_8_1, tile_9_1, tile_10_1, tile_11_1, tile_12_1};
#else
#define TALLEST 6
static Tile *const TILES[] = {tile_1_1, tile_2_1, tile_3_1, tile_4_1, tile_5_1, tile_6_1};
#endif

/* out (rows, width) = a (rows, inner) times weights b, (panels, inner, PANEL), plus bias c; of these
 * the columns from `first`, a whole stripe, to `last`. Tiles of a few rows take more panels:
 * an addition waits for the last, so eight sums have to be under way. */
static void product(const Operation *op, int first, int last) {
    int width = op->width, inner = op->inner, rows = op->rows, panels;
    for (int column = first; column < last; column += panels * PANEL) {
        const float *x = op->a, *weights = (const float *)op->b + (int64_t)column * inner;
        float *out = op->out;
        panels = rows == 1 ? 4 : rows == 2 ? 2 : 1;
        if (panels > 1 && column + panels * PANEL <= width) {
            (rows == 1 ? tile_1_4 : tile_2_2)(x, weights, op->c, out, inner, width, column);
            continue;
        }
        panels = 1;
        int tiles = (rows + TALLEST - 1) / TALLEST;
        for (int tile = 0, row = 0; tile < tiles; tile++) {
            int size = (rows - row + tiles - tile - 1) / (tiles - tile);
            TILES[size - 1](x + (int64_t)row * inner, weights, op->c, out + (int64_t)row * width,
                            inner, width, column);
            row += size;
        }
    }
}

/* Columns of a product that one thread computes, where several do. */
INLINE int stripe(const Operation *op) { return op->rows > 2 ? PANEL : 4 * PANEL; }

static int product_part(const void *work, int part) {
    const Operation *op = work;
    int first = part * stripe(op), last = first + stripe(op);
    product(op, first, last < op->width ? last : op->width);
    return 0;
}

/* out (rows, width) = RMSNorm of a with weights b and epsilon `number`; a += c first, if given. */
static void norm(const Operation *op) {
    int width = op->width;
    for (int64_t row = 0; row < op->rows; row++) {
        float *x = (float *)op->a + row * width, *out = (float *)op->out + row * width;
        const float *delta = op->c ? (const float *)op->c + row * width : 0;
        Vec squares = {0};
        for (int i = 0; i < width; i += LANES) {
            Vec v = some(x, i, width);
            if (delta) keep(x, i, width, v += some(delta, i, width));
            squares += v * v;
        }
        float scale = 1.0f / sqrtf(sum(squares) / width + op->number);
        for (int i = 0; i < width; i += LANES)
            keep(out, i, width, some(x, i, width) * scale * some(op->b, i, width));
    }
}

/* out (rows, width) = silu of the left half of a (rows, 2 width) times the right half. */
static void silu_mul(const Operation *op) {
    int width = op->width;
    for (int64_t row = 0; row < op->rows; row++) {
        const float *gate = (const float *)op->a + row * 2 * width, *up = gate + width;
        float *out = (float *)op->out + row * width;
        for (int i = 0; i < width; i += LANES) {
            Vec g = some(gate, i, width);
            keep(out, i, width, g / (exponential(-g) + 1.0f) * some(up, i, width));
        }
    }
}

/* out (rows, width) = rows of the table b, (panels, width, PANEL), that the tokens a (int64) name. */
static void embed(const Operation *op) {
    for (int64_t row = 0; row < op->rows; row++) {
        int64_t token = ((const int64_t *)op->a)[row];
        const float *from = (const float *)op->b + token / PANEL * op->width * PANEL + token % PANEL;
        for (int64_t i = 0; i < op->width; i++)
            ((float *)op->out)[row * op->width + i] = from[i * PANEL];
    }
}

/* Cosines out and sines d (rows, width) of positions a (int64, three lines of `inner`) times
 * frequencies b; c (int64) names the line of each. */
static void angles(const Operation *op) {
    const int64_t *positions = op->a, *lines = op->c;
    const float *frequencies = op->b;
    for (int64_t row = 0; row < op->rows; row++)
        for (int i = 0; i < op->width; i++) {
            float angle = (float)positions[lines[i] * op->inner + row] * frequencies[i];
            ((float *)op->out)[row * op->width + i] = cosf(angle);
            ((float *)op->d)[row * op->width + i] = sinf(angle);
        }
}

/* Turn queries and keys of a (rows, heads + 2 kv_heads, head_dim), in place, by cosines b and sines
 * c (rows, head_dim / 2); keys and values go to a layer's memory `out`, the keys to the number d
 * (int64) of it, unless that is negative. */
static void write_kv(const Operation *op) {
    int size = op->head_dim, half = size / 2, turned = op->heads + op->kv_heads;
    size_t run = (size_t)op->kv_heads * size;
    for (int64_t row = 0; row < op->rows; row++) {
        float *x = (float *)op->a + row * (turned + op->kv_heads) * size;
        const float *cosines = (const float *)op->b + row * half;
        const float *sines = (const float *)op->c + row * half;
        for (int head = 0; head < turned; head++) {
            float *left = x + head * size, *right = left + half;
            for (int i = 0; i < half; i++) {
                float l = left[i], r = right[i];
                left[i] = l * cosines[i] - r * sines[i];
                right[i] = r * cosines[i] + l * sines[i];
            }
        }
        int64_t place = ((const int64_t *)op->d)[row];
        if (place < 0) continue;
        float *keys = (float *)op->out + place;
        memcpy(keys, x + op->heads * size, run * sizeof(float));
        memcpy(keys + op->block_size * run, x + turned * size, run * sizeof(float));
    }
}

#include "attention.h"
#include "pictures.h"

/* How an operation is cut where others may help: into what parts, and about how many multiplications
 * it takes. Others may not help with an operation of one part. */
typedef struct {
    Part *part;
    int parts;
    int64_t size;
} Cut;

static Cut cut(const Operation *op) {
    int64_t each = (int64_t)op->rows * op->heads * op->head_dim * 2, seen = 0;
    switch (op->kind) {
    case PRODUCT:
        return (Cut){product_part, (op->width + stripe(op) - 1) / stripe(op),
                     (int64_t)op->rows * op->width * op->inner};
    case ATTEND:
        for (int row = 0; row < op->rows; row += ROWS_EACH) seen += ((const int64_t *)op->d)[row];
        return (Cut){attend_part, (op->rows + ROWS_EACH - 1) / ROWS_EACH,
                     seen * ROWS_EACH * op->heads * op->head_dim * 2};
    case ATTEND_TILES: return (Cut){attend_tiles, op->heads / together(op), each * op->inner};
    case ATTEND_SPANS:
        for (int span = 0; span < op->inner; span++) {
            int64_t length = ((const int64_t *)op->d)[span * 2 + 1];
            seen += length * length;
        }
        return (Cut){attend_span, op->inner * op->heads, seen * op->heads * op->head_dim * 2};
    default: return (Cut){0, 1, 0};
    }
}

/* Do an operation, all of it here. Not 0 if it failed. */
static int alone(const Operation *op) {
    int failed = 0;
    switch (op->kind) {
    case PRODUCT: product(op, 0, op->width); return 0;
    case NORM: norm(op); return 0;
    case SILU_MUL: silu_mul(op); return 0;
    case EMBED: embed(op); return 0;
    case ANGLES: angles(op); return 0;
    case WRITE: write_kv(op); return 0;
    case PATCHES: patches(op); return 0;
    case ATTEND: return attend(op);
    case ATTEND_TILES:
    case ATTEND_SPANS: {
        Cut all = cut(op);
        for (int part = 0; part < all.parts; part++) failed |= all.part(op, part);
        return failed;
    }
    default: return -1;
    }
}

/* Walk `count` operations, each on `rows` rows if that is not 0, with at most `threads` threads. The
 * index of the one that failed, or -1. */
int run(const Operation *operations, int count, int rows, int threads) {
    for (int index = 0; index < count; index++) {
        Operation op = operations[index];
        if (rows) op.rows = rows;
        Cut how = threads > 1 ? cut(&op) : (Cut){0, 1, 0};
        int helpers = how.size < LARGE ? 0 : hire(how.parts, threads);
        if (helpers ? share_out(how.part, &op, how.parts, helpers) : alone(&op)) return index;
    }
    return -1;
}

/* Columns of a panel: how weights are laid out is the caller's work. */
int panel_width(void) { return PANEL; }
