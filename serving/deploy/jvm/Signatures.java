import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.nio.ByteBuffer;
import java.nio.file.DirectoryStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import org.tensorflow.GraphOperation;
import org.tensorflow.GraphOperationBuilder;
import org.tensorflow.Operand;
import org.tensorflow.Output;
import org.tensorflow.Result;
import org.tensorflow.SavedModelBundle;
import org.tensorflow.Session;
import org.tensorflow.Tensor;
import org.tensorflow.ndarray.NdArray;
import org.tensorflow.ndarray.Shape;
import org.tensorflow.ndarray.buffer.ByteDataBuffer;
import org.tensorflow.ndarray.buffer.DataBuffers;
import org.tensorflow.proto.AttrValue;
import org.tensorflow.proto.DataType;
import org.tensorflow.proto.NamedTensorProto;
import org.tensorflow.proto.NodeDef;
import org.tensorflow.proto.SignatureDef;
import org.tensorflow.proto.TensorInfo;
import org.tensorflow.proto.TensorProto;
import org.tensorflow.proto.TensorShapeProto;
import org.tensorflow.types.TBool;
import org.tensorflow.types.TFloat32;
import org.tensorflow.types.TInt32;
import org.tensorflow.types.TInt64;
import org.tensorflow.types.TString;
import org.tensorflow.types.TUint8;
import org.tensorflow.types.family.TType;

/**
 * Calls signatures of a pushed version in the JVM, by TensorFlow's C++ loader.
 *
 * <p>{@code java -cp "lib/*:." Signatures <version folder> <requests>}: for each file {@code <signature>.in} of the
 * second folder, tensors as NamedTensorProto, each with its length before it, its outputs are written to
 * {@code <signature>.out} in the same way.
 */
public final class Signatures implements AutoCloseable {
  private static final Map<DataType, Class<? extends TType>> TYPES = Map.of(
      DataType.DT_INT64, TInt64.class, DataType.DT_INT32, TInt32.class, DataType.DT_FLOAT, TFloat32.class,
      DataType.DT_BOOL, TBool.class, DataType.DT_INT8, TUint8.class);

  private final SavedModelBundle model;

  public Signatures(String versionFolder) {
    model = SavedModelBundle.load(versionFolder, SavedModelBundle.DEFAULT_TAG);
  }

  public static void main(String[] arguments) throws IOException {
    try (Signatures signatures = new Signatures(arguments[0]);
        DirectoryStream<Path> files = Files.newDirectoryStream(Path.of(arguments[1]), "*.in")) {
      for (Path file : files) {
        String name = file.getFileName().toString().replaceFirst("\\.in$", "");
        Map<String, TensorProto> outputs = signatures.call(name, read(file));
        write(file.resolveSibling(name + ".out"), outputs);
      }
    }
  }

  /** Returns the outputs of a signature by name. */
  public Map<String, TensorProto> call(String signature, Map<String, TensorProto> inputs) {
    SignatureDef known = model.metaGraphDef().getSignatureDefOrThrow(signature);
    boolean takesBytes = known.getInputsMap().values().stream().anyMatch(Signatures::isInt8);
    String suffix = takesBytes ? "_of_bytes" : "";
    if (takesBytes) {
      takeBytes(known, suffix);
    }
    Session.Runner runner = model.session().runner();
    List<Tensor> fed = new ArrayList<>();
    try {
      for (Map.Entry<String, TensorProto> input : inputs.entrySet()) {
        TensorInfo info = known.getInputsOrThrow(input.getKey());
        fed.add(tensor(input.getValue()));
        runner.feed(isInt8(info) ? operation(info) + suffix : info.getName(), fed.get(fed.size() - 1));
      }
      Map<String, TensorInfo> wanted = new TreeMap<>(known.getOutputsMap());
      for (TensorInfo info : wanted.values()) {
        runner.fetch(operation(info) + suffix + ":" + index(info));
      }
      Map<String, TensorProto> outputs = new TreeMap<>();
      try (Result result = runner.run()) {
        int place = 0;
        for (String name : wanted.keySet()) {
          outputs.put(name, proto(result.get(place++)));
        }
      }
      return outputs;
    } finally {
      fed.forEach(Tensor::close);
    }
  }

  @Override
  public void close() {
    model.close();
  }

  /**
   * Adds the signature's call to the graph once more, for int8 inputs that are fed as the bytes that they are: TensorFlow
   * for the JVM has no int8 tensor, but its graph has the type.
   */
  private void takeBytes(SignatureDef known, String suffix) {
    String call = operation(known.getOutputsMap().values().iterator().next());
    if (model.graph().operation(call + suffix) != null) {
      return;
    }
    Map<String, Output<?>> replaced = new TreeMap<>();
    for (TensorInfo info : known.getInputsMap().values()) {
      if (isInt8(info)) {
        GraphOperation bytes = builder("Placeholder", operation(info) + suffix)
            .setAttr("dtype", DataType.DT_UINT8).build();
        GraphOperation int8 = builder("Bitcast", operation(info) + suffix + "_int8")
            .addInput(bytes.output(0)).setAttr("T", DataType.DT_UINT8).setAttr("type", DataType.DT_INT8).build();
        replaced.put(operation(info), int8.output(0));
      }
    }
    NodeDef node = model.metaGraphDef().getGraphDef().getNodeList().stream()
        .filter(one -> one.getName().equals(call)).findFirst().orElseThrow();
    List<Output<?>> inputs = new ArrayList<>();
    for (Operand<?> input : model.graph().operation(call).inputs()) {
      inputs.add(replaced.getOrDefault(input.op().name(), input.asOutput()));
    }
    GraphOperationBuilder again = builder(node.getOp(), call + suffix).addInputList(inputs.toArray(new Output<?>[0]));
    for (Map.Entry<String, AttrValue> attribute : node.getAttrMap().entrySet()) {
      again.setAttr(attribute.getKey(), attribute.getValue());
    }
    again.build();
  }

  private GraphOperationBuilder builder(String type, String name) {
    return model.graph().opBuilder(type, name, model.graph().baseScope());
  }

  private static boolean isInt8(TensorInfo info) {
    return info.getDtype() == DataType.DT_INT8;
  }

  /** Returns the name of the operation that a tensor is of, such as {@code call} for {@code call:1}. */
  private static String operation(TensorInfo info) {
    return info.getName().substring(0, info.getName().lastIndexOf(':'));
  }

  private static String index(TensorInfo info) {
    return info.getName().substring(info.getName().lastIndexOf(':') + 1);
  }

  private static Tensor tensor(TensorProto proto) {
    Shape shape = Shape.of(
        proto.getTensorShape().getDimList().stream().mapToLong(TensorShapeProto.Dim::getSize).toArray());
    if (proto.getDtype() == DataType.DT_STRING) {
      byte[][] values = proto.getStringValList().stream().map(value -> value.toByteArray()).toArray(byte[][]::new);
      return TString.tensorOfBytes(shape, DataBuffers.of(values, true, false));
    }
    ByteDataBuffer content = DataBuffers.of(proto.getTensorContent().toByteArray());
    return Tensor.of(TYPES.get(proto.getDtype()), shape, content);
  }

  private static TensorProto proto(Tensor tensor) {
    TensorProto.Builder result = TensorProto.newBuilder().setDtype(tensor.dataType());
    for (long size : tensor.shape().asArray()) {
      result.getTensorShapeBuilder().addDim(TensorShapeProto.Dim.newBuilder().setSize(size));
    }
    if (tensor instanceof TString) {
      NdArray<byte[]> values = ((TString) tensor).asBytes();
      values.scalars().forEach(
          value -> result.addStringVal(com.google.protobuf.ByteString.copyFrom(value.getObject())));
    } else {
      ByteBuffer content = ByteBuffer.allocate((int) tensor.numBytes());
      tensor.asRawTensor().data().read(content.array());
      result.setTensorContent(com.google.protobuf.ByteString.copyFrom(content.array()));
    }
    return result.build();
  }

  private static Map<String, TensorProto> read(Path file) throws IOException {
    Map<String, TensorProto> found = new TreeMap<>();
    try (InputStream stream = Files.newInputStream(file)) {
      NamedTensorProto one;
      while ((one = NamedTensorProto.parseDelimitedFrom(stream)) != null) {
        found.put(one.getName(), one.getTensor());
      }
    }
    return found;
  }

  private static void write(Path file, Map<String, TensorProto> tensors) throws IOException {
    try (OutputStream stream = Files.newOutputStream(file)) {
      for (Map.Entry<String, TensorProto> one : tensors.entrySet()) {
        NamedTensorProto.newBuilder().setName(one.getKey()).setTensor(one.getValue()).build().writeDelimitedTo(stream);
      }
    }
  }
}
