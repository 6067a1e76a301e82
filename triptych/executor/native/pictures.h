/* What only pictures need: patches of pixels, and attention where every row of a span sees all of it.
 *
 * Part of steps.c, whose products it computes with.
 */

#define BESIDE 48 /* rows of a span that are computed together */

/* out (rows, 3 * inner * head_dim^2): patches of a picture a, bytes (height, width * head_dim, 3), in
 * squares of heads x heads neighbours, row by row; a patch is its channels, each `inner` times the
 * same. b (3, 256) says what a byte becomes. */
static void patches(const Operation *op) {
    int size = op->head_dim, merge = op->heads, across = op->width / merge, area = size * size;
    const uint8_t *picture = op->a;
    const float *values = op->b;
    for (int64_t patch = 0; patch < op->rows; patch++) {
        int64_t within = patch % (merge * merge), square = patch / (merge * merge);
        int64_t row = square / across * merge + within / merge;
        int64_t column = square % across * merge + within % merge;
        float *out = (float *)op->out + patch * 3 * op->inner * area;
        for (int channel = 0; channel < 3; channel++, out += op->inner * area) {
            for (int64_t y = 0; y < size; y++) {
                int64_t first = (row * size + y) * op->width * size + column * size;
                const uint8_t *from = picture + 3 * first + channel;
                for (int x = 0; x < size; x++) out[y * size + x] = values[channel * 256 + from[3 * x]];
            }
            for (int frame = 1; frame < op->inner; frame++)
                memcpy(out + frame * area, out, sizeof(float) * area);
        }
    }
}

/* One head of a row: its queries (`which` 0), keys (1) or values (2). */
INLINE const float *head_of(const Operation *op, int64_t row, int which, int head) {
    return (const float *)op->a + ((row * 3 + which) * op->heads + head) * op->head_dim;
}

/* Number `i` of a row's head, turned by the row's angles. */
INLINE float turned(const Operation *op, int64_t row, const float *x, int i) {
    int half = op->head_dim / 2, pair = i % half;
    const float *cosines = (const float *)op->b + row * half, *sines = (const float *)op->c + row * half;
    return i < half ? x[i] * cosines[pair] - x[i + half] * sines[pair]
                    : x[i] * cosines[pair] + x[pair] * sines[pair];
}

/* A head's keys, turned, as the weights of a product that gives scores, (panels of tokens, head_dim,
 * PANEL), and its values as those of one that gives outputs, (panels of head_dim, tokens, PANEL). */
static void lay_out(const Operation *op, int head, const int64_t *span, float *keys, float *values) {
    int size = op->head_dim;
    for (int64_t token = 0; token < span[1]; token++) {
        const float *key = head_of(op, span[0] + token, 1, head);
        const float *value = head_of(op, span[0] + token, 2, head);
        float *column = keys + token / PANEL * size * PANEL + token % PANEL;
        for (int i = 0; i < size; i++) {
            column[i * PANEL] = turned(op, span[0] + token, key, i);
            values[(i / PANEL * span[1] + token) * PANEL + i % PANEL] = value[i];
        }
    }
}

/* Scores (rows, wide) of keys, of which `length` are there, become weights (rows, length). */
static void weigh_rows(float *scores, int64_t rows, int64_t wide, int64_t length, float *totals) {
    for (int64_t r = 0; r < rows; r++) {
        float *row = scores + r * wide;
        for (int64_t i = length; i < wide; i++) row[i] = -INFINITY;
        totals[r] = weights_of(row, wide, greatest(row, wide, -INFINITY));
        if (wide != length) memmove(scores + r * length, row, sizeof(float) * length);
    }
}

/* out (rows, heads, head_dim): queries and keys of a (rows, 3, heads, head_dim) are turned by cosines b
 * and sines c (rows, head_dim / 2), and every row attends to its own span; d (int64) holds `inner`
 * pairs, the first row of a span and its length. `number` scales scores. Fails if there is no memory.
 * Part `part` of it: one head of one span. */
static int attend_span(const void *work, int part) {
    const Operation *op = work;
    const int64_t *span = (const int64_t *)op->d + part / op->heads * 2;
    int size = op->head_dim, head = part % op->heads;
    int64_t length = span[1], wide = (length + PANEL - 1) / PANEL * PANEL;
    int64_t num_values = (size + PANEL - 1) / PANEL * PANEL * length;
    float *keys = calloc(wide * size + num_values + BESIDE * (wide + 2 * size + 1), sizeof(float));
    if (!keys) return -1;
    float *values = keys + wide * size, *scores = values + num_values, *query = scores + BESIDE * wide;
    float *out = query + BESIDE * size, *totals = out + BESIDE * size;
    lay_out(op, head, span, keys, values);
    for (int64_t first = 0, rows; first < length; first += rows) {
        rows = length - first < BESIDE ? length - first : BESIDE;
        for (int64_t r = 0; r < rows; r++)
            for (int i = 0; i < size; i++) {
                int64_t row = span[0] + first + r;
                query[r * size + i] = op->number * turned(op, row, head_of(op, row, 0, head), i);
            }
        Operation dots = {.rows = rows, .width = wide, .inner = size, .a = query, .b = keys, .out = scores};
        product(&dots, 0, wide);
        weigh_rows(scores, rows, wide, length, totals);
        Operation sums = {.rows = rows, .width = size, .inner = length, .a = scores, .b = values, .out = out};
        product(&sums, 0, size);
        for (int64_t r = 0; r < rows; r++)
            for (int i = 0; i < size; i++)
                ((float *)op->out)[((span[0] + first + r) * op->heads + head) * size + i] =
                    out[r * size + i] / totals[r];
    }
    free(keys);
    return 0;
}
