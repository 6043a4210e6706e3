import java.io.BufferedOutputStream;
import java.io.DataOutputStream;
import java.io.FileOutputStream;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.atomic.AtomicReference;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.PartitionInfo;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.header.internals.RecordHeader;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/**
 * What the benches do to Kafka themselves, outside every measured time.
 *
 * <p>`produce bootstrap topic format events keys schemaId origin`: event i adds (i % 7) + 1 to key
 * `score:pNNNN`, NNNN = splitmix64(i) mod keys, by the default partitioner. Format `long`: an 8-byte big-endian long; `streams`: our wire
 * format and headers.
 *
 * <p>`readings bootstrap topic events devices baseMs perEventSecond`: reading i as
 * `streams/bench/readings.py` has it: the key `device:NNNNNNN:telemetry`, the value as a double, the time as the record's
 * timestamp.
 *
 * <p>`dump bootstrap topic file`: the last value of every key of a topic, read_committed:
 * (i32 key length, key, i32 value length or -1, value)…
 *
 * <p>`markers bootstrap topic seconds`: prints `ready`, waits for the topic, then follows the last committed markers of
 * all partitions of a table's changelog for that many seconds. A line for each change: seconds when the ends were asked
 * for, seconds when the markers up to them had been read, the markers; separated by tabs. What was committed when the ends
 * were asked for is in the line, and what is in the line was committed when it was printed.
 *
 * <p>`create bootstrap topic partitions name=value…`, `delete bootstrap prefix`.
 */
public final class BenchTool {
    private static final byte[] MARKER = "\0marker".getBytes(StandardCharsets.UTF_8);

    static long splitmix64(long i) {
        long z = i * 0x9E3779B97F4A7C15L + 0x9E3779B97F4A7C15L;
        z = (z ^ (z >>> 30)) * 0xBF58476D1CE4E5B9L;
        z = (z ^ (z >>> 27)) * 0x94D049BB133111EBL;
        return z ^ (z >>> 31);
    }

    private static byte[] counterAdd(int schemaId, long add) {
        ByteBuffer out = ByteBuffer.allocate(15).put((byte) 0).putInt(schemaId);
        long zigzag = (add << 1) ^ (add >> 63);
        while ((zigzag & ~0x7FL) != 0) {
            out.put((byte) (zigzag & 0x7F | 0x80));
            zigzag >>>= 7;
        }
        out.put((byte) zigzag);
        byte[] value = new byte[out.position()];
        out.flip().get(value);
        return value;
    }

    private static void produce(String[] a) throws Exception {
        Properties config = new Properties();
        config.put("bootstrap.servers", a[1]);
        config.put("linger.ms", "20");
        config.put("batch.size", "65536");
        boolean plain = a[3].equals("long");
        long events = Long.parseLong(a[4]);
        int keys = Integer.parseInt(a[5]);
        int schemaId = Integer.parseInt(a[6]);
        byte[] origin = a[7].getBytes(StandardCharsets.UTF_8);
        AtomicReference<Exception> failure = new AtomicReference<>();
        try (var producer = new KafkaProducer<>(config, new ByteArraySerializer(), new ByteArraySerializer())) {
            long lastMs = 0;
            long counter = 0;
            for (long i = 0; i < events && failure.get() == null; i++) {
                long add = i % 7 + 1;
                String id = Integer.toString((int) Long.remainderUnsigned(splitmix64(i), keys));
                byte[] key = ("score:p" + "0".repeat(Math.max(0, 4 - id.length())) + id).getBytes(StandardCharsets.UTF_8);
                byte[] value = plain ? ByteBuffer.allocate(8).putLong(add).array() : counterAdd(schemaId, add);
                List<Header> headers = null;
                if (!plain) {
                    long nowMs = System.currentTimeMillis();
                    counter = nowMs > lastMs ? 0 : counter + 1;
                    lastMs = Math.max(nowMs, lastMs);
                    long hlc = (lastMs << 16) + counter;
                    headers = List.of(
                        new RecordHeader("hlc", Long.toUnsignedString(hlc).getBytes(StandardCharsets.US_ASCII)),
                        new RecordHeader("origin", origin));
                }
                producer.send(new ProducerRecord<>(a[2], null, null, key, value, headers), (meta, error) -> {
                    if (error != null) {
                        failure.set(error);
                    }
                });
            }
        }
        if (failure.get() != null) {
            throw failure.get();
        }
    }

    /** The readings from `first` on, before `last`; returns when all are acknowledged by all replicas. */
    static void readings(String bootstrap, String topic, long first, long last, String[] of) throws Exception {
        Properties config = new Properties();
        config.put("bootstrap.servers", bootstrap);
        config.put("linger.ms", "20");
        config.put("batch.size", "65536");
        int devices = Integer.parseInt(of[0]);
        long baseMs = Long.parseLong(of[1]);
        long perEventSecond = Long.parseLong(of[2]);
        AtomicReference<Exception> failure = new AtomicReference<>();
        try (var producer = new KafkaProducer<>(config, new ByteArraySerializer(), new ByteArraySerializer())) {
            for (long i = first; i < last && failure.get() == null; i++) {
                long mixed = splitmix64(i);
                String id = Long.toString((mixed >>> 32) * devices >>> 32);
                byte[] key = ("device:" + "0".repeat(Math.max(0, 7 - id.length())) + id + ":telemetry").getBytes(StandardCharsets.UTF_8);
                byte[] value = ByteBuffer.allocate(8).putDouble(0.25 * (mixed & 1023)).array();
                long timeMs = baseMs + i * 1000 / perEventSecond;
                producer.send(new ProducerRecord<>(topic, null, timeMs, key, value, null), (meta, error) -> {
                    if (error != null) {
                        failure.set(error);
                    }
                });
            }
        }
        if (failure.get() != null) {
            throw failure.get();
        }
    }

    private static KafkaConsumer<byte[], byte[]> consumer(String bootstrap) {
        return new KafkaConsumer<>(
            Map.<String, Object>of("bootstrap.servers", bootstrap, "isolation.level", "read_committed", "enable.auto.commit", "false"),
            new ByteArrayDeserializer(), new ByteArrayDeserializer());
    }

    private static List<TopicPartition> partitions(KafkaConsumer<?, ?> consumer, String topic) {
        List<TopicPartition> found = new ArrayList<>();
        for (PartitionInfo info : consumer.partitionsFor(topic)) {
            found.add(new TopicPartition(topic, info.partition()));
        }
        return found;
    }

    private static void dump(String[] a) throws Exception {
        Map<ByteBuffer, byte[]> last = new HashMap<>();
        try (var consumer = consumer(a[1])) {
            List<TopicPartition> assigned = partitions(consumer, a[2]);
            consumer.assign(assigned);
            consumer.seekToBeginning(assigned);
            Map<TopicPartition, Long> ends = consumer.endOffsets(assigned);
            while (assigned.stream().anyMatch(tp -> consumer.position(tp) < ends.get(tp))) {
                for (ConsumerRecord<byte[], byte[]> record : consumer.poll(Duration.ofMillis(100))) {
                    last.put(ByteBuffer.wrap(record.key()), record.value());
                }
            }
        }
        try (var out = new DataOutputStream(new BufferedOutputStream(new FileOutputStream(a[3])))) {
            for (var entry : last.entrySet()) {
                out.writeInt(entry.getKey().array().length);
                out.write(entry.getKey().array());
                byte[] value = entry.getValue();
                out.writeInt(value == null ? -1 : value.length);
                if (value != null) {
                    out.write(value);
                }
            }
        }
    }

    private static void markers(String[] a) throws Exception {
        long start = System.nanoTime();
        try (var consumer = consumer(a[1])) {
            System.out.println("ready");
            System.out.flush();
            while (!consumer.listTopics().containsKey(a[2])) {
                Thread.sleep(20);
            }
            List<TopicPartition> assigned = partitions(consumer, a[2]);
            consumer.assign(assigned);
            Map<TopicPartition, Long> shown = new HashMap<>();
            while (System.nanoTime() - start < Long.parseLong(a[3]) * 1_000_000_000L) {
                double asked = (System.nanoTime() - start) / 1e9;
                Map<TopicPartition, Long> ends = consumer.endOffsets(assigned);
                List<TopicPartition> moved = new ArrayList<>();
                for (TopicPartition tp : assigned) {
                    if (ends.get(tp) > shown.getOrDefault(tp, 0L)) {
                        consumer.seek(tp, Math.max(0, ends.get(tp) - 2));
                        shown.put(tp, ends.get(tp));
                        moved.add(tp);
                    }
                }
                if (moved.isEmpty()) {
                    Thread.sleep(10);
                    continue;
                }
                consumer.pause(assigned);
                consumer.resume(moved);
                List<String> found = new ArrayList<>();
                while (moved.stream().anyMatch(tp -> consumer.position(tp) < ends.get(tp))) {
                    for (ConsumerRecord<byte[], byte[]> record : consumer.poll(Duration.ofMillis(10))) {
                        if (java.util.Arrays.equals(record.key(), MARKER)) {
                            found.add(new String(record.value(), StandardCharsets.UTF_8));
                        }
                    }
                }
                double seen = (System.nanoTime() - start) / 1e9;
                System.out.println(asked + "\t" + seen + "\t" + String.join("\t", found));
                System.out.flush();
            }
        }
    }

    private static void delete(String[] a) throws Exception {
        try (Admin admin = Admin.create(Map.<String, Object>of("bootstrap.servers", a[1]))) {
            List<String> doomed = new ArrayList<>();
            for (String name : admin.listTopics().names().get()) {
                if (name.startsWith(a[2])) {
                    doomed.add(name);
                }
            }
            admin.deleteTopics(doomed).all().get();
        }
    }

    private static void create(String[] a) throws Exception {
        try (Admin admin = Admin.create(Map.<String, Object>of("bootstrap.servers", a[1]))) {
            Map<String, String> config = new HashMap<>();
            for (int i = 4; i < a.length; i++) {
                String[] pair = a[i].split("=", 2);
                config.put(pair[0], pair[1]);
            }
            var topic = new org.apache.kafka.clients.admin.NewTopic(a[2], Integer.parseInt(a[3]), (short) 1);
            admin.createTopics(List.of(topic.configs(config))).all().get();
        }
    }

    public static void main(String[] a) throws Exception {
        switch (a[0]) {
            case "produce" -> produce(a);
            case "readings" -> readings(a[1], a[2], 0, Long.parseLong(a[3]), java.util.Arrays.copyOfRange(a, 4, 7));
            case "dump" -> dump(a);
            case "markers" -> markers(a);
            case "create" -> create(a);
            case "delete" -> delete(a);
            default -> throw new IllegalArgumentException(a[0]);
        }
    }
}
